"""How fast overlays are drawn on one core, by size and by the encoder's settings: python -m benchmarks.overlay

A made video of 20 s (30 frames a second, moving noise under a moving bar) and, where ../shared/data has them, real
short-form ones; the same map and outline over each. A time is the least CPU time of `REPEATS` runs.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.decode import DATA, av_duration_s, write_made_video
from catalog.video import probe
from catalog.video_container import Limits
from views import rewrite as writer
from views.maps import SavedMap
from views.overlay import Overlay

REPEATS = 3
REAL_VIDEOS = 4
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": writer.PICTURE,
    "ultrafast, crf 25": {"preset": "ultrafast", "crf": "25"},
    "superfast, crf 23": {"preset": "superfast", "crf": "23"},
}


def made_map(seconds: int) -> SavedMap:
    """Blurred noise, and an outline that moves."""
    random = np.random.default_rng(0)
    noise = np.stack([cv2.GaussianBlur(random.random((112, 112)), (0, 0), 6) for _ in range(seconds)])
    scaled = (noise - noise.min()) / np.ptp(noise)
    quad = np.array([[[0.3, 0.3], [0.6, 0.35], [0.6, 0.6], [0.3, 0.6]]])
    return SavedMap((scaled * 255).astype(np.uint8), [quad + 0.01 * k for k in range(seconds)], 1.0)


def core_seconds(source: Path, target: Path, picture: dict[str, str]) -> float:
    saved = made_map(int(av_duration_s(source)) + 1)
    values: Any = np.linspace(0, 0.1, len(saved.levels))
    kept, writer.PICTURE = writer.PICTURE, picture
    try:
        best = float("inf")
        for _ in range(REPEATS):
            started = time.process_time()
            writer.rewrite(source, target, Limits(), Overlay(saved, values, "PE", 0.8))
            best = min(best, time.process_time() - started)
        return best
    finally:
        writer.PICTURE = kept


def main() -> None:
    cv2.setNumThreads(1)
    console = Console(width=160)
    table = Table("video", "size", "settings", "times real time on a core", "MB", title="Overlays, one core")
    with tempfile.TemporaryDirectory() as folder:
        made, target = Path(folder) / "made.mp4", Path(folder) / "overlay.mp4"
        write_made_video(made)
        real = [p for p in sorted((DATA / "tiktok_popularity").glob("*.mp4")) if "corrupt" not in p.name]
        for source in [made, *real[:REAL_VIDEOS]]:
            info = probe(source)
            for name, picture in SETTINGS.items():
                spent = core_seconds(source, target, picture)
                times = f"{av_duration_s(source) / spent:.1f}"
                size = f"{info.width}x{info.height}, {info.frame_rate:.0f}/s"
                table.add_row(source.name, size, name, times, f"{target.stat().st_size / 1e6:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
