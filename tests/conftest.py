"""What several test files share: a small made-up world, made once."""

import os
import signal
from pathlib import Path

import pytest

from catalog.world import WorldConfig, WorldPaths, make_world

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background jobs begin with ignored


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> WorldPaths:
    """Twelve videos of 3 to 5 seconds by four creators, with sales and truth."""
    folder: Path = tmp_path_factory.mktemp("small-world")
    return make_world(folder, videos=12, seed=1, workers=2, config=WorldConfig(seconds=(3.0, 5.0)))
