"""A page opened in the browser, and what every page must keep to."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

WIDE, NARROW = 1280, 390
WAIT_S = 20.0
LOCAL = ("file:", "data:", "blob:")


@dataclass(frozen=True)
class Opened:
    """A page that its scripts have finished, and what went wrong meanwhile."""

    page: Page
    complaints: list[str]
    """errors on the console, exceptions, and requests that left the file"""

    def wait_for(self, condition: str) -> None:
        """Until the expression is true; Playwright's own way would need the page to allow eval."""
        deadline = time.monotonic() + WAIT_S
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"never came true: {condition}"
            self.page.wait_for_timeout(20)

    def accessibility_problems(self) -> list[str]:
        """What axe-core finds against WCAG 2.2 A and AA, contrast among it."""
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        found = Axe().run(self.page, options={"runOnly": {"type": "tag", "values": tags}})
        return [
            f"{problem['id']}: {node['target']} {node.get('failureSummary', '')}"
            for problem in found.response["violations"]
            for node in problem["nodes"]
        ]

    def is_too_wide(self) -> bool:
        """Whether the page itself has to be pushed sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


@contextmanager
def opened(chromium: Browser, html: str | Path, folder: Path, width: int = WIDE) -> Iterator[Opened]:
    """The page, from a file as a reader opens it, without any network."""
    path = html if isinstance(html, Path) else folder / "page.html"
    if isinstance(html, str):
        path.write_text(html)
    context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True)
    complaints: list[str] = []
    page = context.new_page()
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(LOCAL) else complaints.append(f"asked {asked.url}"))
    page.set_default_timeout(1000 * WAIT_S)
    try:
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("body[data-ready], body:not(:has(script))")
        yield Opened(page, complaints)
    finally:
        context.close()
