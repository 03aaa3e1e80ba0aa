"""The pictures in docs/ of the demo's made-up world: python -m benchmarks.screenshots

After make demo, and a second training for the pictures of MLflow's UI, which shows two to choose between:
python -m jobs.train --videos demo/world/videos.parquet --architecture r3d_18_w16 --epochs 7 --learning-rate 0.0005
"""

import dataclasses
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np
import tyro
from playwright.sync_api import Browser, sync_playwright

from benchmarks.mlflow_ui import picture_mlflow
from jobs.overlay import OverlayConfig
from jobs.overlay import main as draw_overlays
from scoring.output import read_scores
from views.names import file_stem
from views.report import ends, ranked

CHROMIUM = "/usr/bin/chromium"
VIEWPORT = (1280, 860)
STILLS = 3


@dataclasses.dataclass(frozen=True)
class ScreenshotConfig:
    demo: Path = Path("demo")
    """folder of jobs.demo"""
    output: Path = Path("docs/pictures")
    """folder for the pictures"""


def screenshot(browser: Browser, page: Path, target: Path, script: str) -> None:
    context = browser.new_context(viewport={"width": VIEWPORT[0], "height": VIEWPORT[1]}, offline=True)
    opened = context.new_page()
    opened.goto(page.absolute().as_uri())
    opened.wait_for_selector("body[data-ready]")
    opened.evaluate(script)
    opened.wait_for_timeout(1000)
    opened.screenshot(path=target)
    context.close()


def middle_frame(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
    return frames[len(frames) // 2].to_ndarray(format="bgr24")


def main(config: ScreenshotConfig) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    outermost = ends(ranked(read_scores(str(config.demo / "scores"))))
    best, worst = (outermost[name][0]["video_id"] for name in ("Highest PE", "Lowest PE"))
    pages = config.demo / "report-videos"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name, page, script in (
            (
                "catalogue",
                config.demo / "report.html",
                "document.getElementById('best').closest('section').scrollIntoView()",
            ),
            ("table", config.demo / "report.html", "document.getElementById('tools').scrollIntoView()"),
            ("video", pages / f"{file_stem(best)}.html", "document.querySelector('video').currentTime = 2"),
        ):
            screenshot(browser, page, config.output / f"{name}.png", script)
        picture_mlflow(browser, config.output)
        browser.close()
    chosen = tuple(dict.fromkeys([best, *(row["video_id"] for row in outermost["Highest PE"][1 : STILLS - 1]), worst]))
    with tempfile.TemporaryDirectory() as folder:
        draw_overlays(OverlayConfig(str(config.demo / "scores"), folder, video=chosen))
        stills = [middle_frame(Path(folder) / f"{file_stem(video_id)}.mp4") for video_id in chosen]
    cv2.imwrite(str(config.output / "overlays.jpg"), np.hstack(stills), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main(tyro.cli(ScreenshotConfig, description=__doc__))
