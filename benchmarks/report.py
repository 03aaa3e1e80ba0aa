"""How long a catalogue's page takes to be made and to be seen: python -m benchmarks.report

Made-up scores of 10,000 and 100,000 videos, with their table, whose videos are ten made-up ones of 15 s over and over.
Making is `jobs.report` on the folder, from its start to its end, with the thumbnails of the best and worst; first paint
(the browser's own first-contentful-paint), the table's first rows, a search, a sort by number and by text in Debian's
chromium on the same machine.
"""

import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from catalog.errors import ErrorCode
from catalog.schemas import SCORES
from catalog.world import WorldConfig, make_world

SIZES = (10_000, 100_000)
PARTS = 20
SECONDS = 15
FILMS, THUMBNAILS = 10, 10
CHROMIUM = "/usr/bin/chromium"
WORDS = ("morning", "routine", "unboxing", "review", "how", "to", "my", "favourite", "skin", "snack", "day", "with")


def write_catalogue(folder: Path, n: int, films: list[str]) -> Path:
    """Scores like those of a real catalogue: two thirds located, a twentieth failed; and the table of its videos, which
    are ``films`` over and over."""
    rng = np.random.default_rng(0)
    status = rng.choice(["ok", "not_localised", "no_product", "failed"], n, p=[0.66, 0.15, 0.14, 0.05])
    p = np.where(status == "ok", rng.beta(2, 12, n), 0.0)
    on_product = rng.beta(2, 8, n)
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    rows = []
    for i in range(n):
        row: dict[str, Any] = dict.fromkeys(SCORES.names)
        row |= {"video_id": f"7{i:018}", "product_id": f"product-{i % 400}", "status": status[i], "scored_at": now}
        if status[i] == "failed":
            row |= {"error_code": str(rng.choice(list(ErrorCode))), "error_stage": "decode", "error_message": "cut off"}
        else:
            e = rng.beta(2, 16, SECONDS)
            row |= {
                "seconds": SECONDS,
                "e_score": e.mean(),
                "predicted_engagement": rng.normal(6, 1),
                "e_per_second": e,
            }
            if status[i] == "no_product":
                row["product_id"] = None
            else:
                row |= {
                    "p_score": p[i],
                    "pe_score": p[i] * on_product[i],
                    "e_on_product": on_product[i] if p[i] else None,
                }
                row |= {"p_per_second": np.full(SECONDS, p[i]), "pe_per_second": np.full(SECONDS, p[i] * on_product[i])}
        rows.append(row)
    (folder / "scores").mkdir(parents=True)
    for part in range(PARTS):
        pq.write_table(pa.Table.from_pylist(rows[part::PARTS], schema=SCORES), folder / f"scores/{part}.parquet")
    titles = [" ".join(rng.choice(WORDS, 6)) for _ in range(n)]
    creators = [f"creator {k}" for k in rng.integers(0, n // 20, n)]
    videos = pa.table(
        {
            "video_id": [row["video_id"] for row in rows],
            "video_uri": [films[i % len(films)] for i in range(n)],
            "title": titles,
            "creator_id": creators,
        }
    )
    pq.write_table(videos, folder / "videos.parquet")
    (folder / "run.json").write_text(json.dumps({"config": {"sample_fps": 1.0}}))
    return folder


def timed(page: Page, action: str) -> float:
    """Seconds until the browser has painted what the action did."""
    script = f"""(async () => {{
      const began = performance.now();
      {action};
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
      return performance.now() - began;
    }})()"""
    return page.evaluate(script) / 1000


def seen(path: Path) -> list[float]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("body[data-ready]")
        ready = page.evaluate("performance.now()") / 1000
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        search = (
            "{const s = document.getElementById('search'); s.value = 'creator 12'; s.dispatchEvent(new Event('input'))}"
        )
        first, again = timed(page, search), timed(page, search)
        clear = timed(page, search.replace("creator 12", ""))
        head = "document.querySelector('th[data-name={}] button').click()"
        sorts = [timed(page, head.format(name)) for name in ("e_score", "title")]
        browser.close()
    return [paint, ready, first, max(again, clear), *sorts]


def main() -> None:
    console = Console(width=160)
    table = Table(
        "videos",
        "made in, s",
        "MB",
        "first paint, s",
        "table, s",
        "first search, s",
        "next, s",
        "sort, s",
        "by text, s",
    )
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder) / "world", videos=FILMS, config=WorldConfig(seconds=(SECONDS, SECONDS)))
        films = sorted(str(path) for path in (world.folder / "videos").iterdir())
        for n in SIZES:
            scores = write_catalogue(Path(folder) / str(n), n, films)
            output = Path(folder) / f"{n}.html"
            command = [sys.executable, "-m", "jobs.report", "--scores", str(scores), "--output", str(output)]
            started = time.monotonic()
            subprocess.run([*command, "--videos", str(scores / "videos.parquet")], check=True, capture_output=True)
            made = time.monotonic() - started
            assert output.read_text().count("data:image/jpeg") == THUMBNAILS
            figures = [made, output.stat().st_size / 1e6, *seen(output)]
            table.add_row(f"{n:,}", *(f"{figure:.2f}" for figure in figures))
    console.print(table)


if __name__ == "__main__":
    main()
