"""What several test files share: a small made-up world, made once."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from catalog.world import WorldConfig, WorldPaths, make_world

CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background jobs begin with ignored


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> WorldPaths:
    """Twelve videos of 3 to 5 seconds by four creators, with sales and truth."""
    folder: Path = tmp_path_factory.mktemp("small-world")
    return make_world(folder, videos=12, seed=1, workers=2, config=WorldConfig(seconds=(3.0, 5.0)))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's browser, without a window."""
    installed = shutil.which("chromium")
    if installed is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()
