"""Where the product is: recall, false positives, accuracy and cost of the product search, in one run.

    python -m benchmarks.locate --videos 24

On a fresh made-up world, and on the labelled real videos of ../shared/data where they are there. "whole frame" searches
every frame at the working resolution; "coarse to fine" is what scoring.product does. A look-alike is another product
of the made-up world, which shares its label's layout and lettering with the one that is shown.
"""

import argparse
import collections
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.cpu_time import cpu_model
from catalog.isolation import IsolatedWorker
from catalog.video import iter_frames
from catalog.world import make_world
from scoring.prepare import keep_freed_memory
from scoring.product import Detection, View, locate, match, view_of
from scoring.settings import ProductConfig
from scoring.sift import root_sift

DATA = Path(__file__).parents[1] / "../shared/data"
CANVAS_PX = 360
TIMEOUT_S = 3600.0
NOT_SCORED = {"mug": (6, 11, 14)}
"""seconds in which a third of the product shows: neither found nor absent"""

Search = Callable[[Sequence[np.ndarray], Sequence[View]], list[Detection | None]]


@dataclass(frozen=True)
class Case:
    """Frames of one video beside one product, and per second the group it counts in and the true quad."""

    frames: list[np.ndarray]
    views: list[View]
    groups: list[str | None]
    quads: list[np.ndarray | None]
    """(K, 2), fractions of the frame"""


@dataclass
class Result:
    seconds: collections.Counter[str] = field(default_factory=collections.Counter)
    found: collections.Counter[str] = field(default_factory=collections.Counter)
    ious: dict[str, list[float]] = field(default_factory=dict)
    core_s: dict[str, float] = field(default_factory=dict)


def whole_frame(frames: Sequence[np.ndarray], views: Sequence[View]) -> list[Detection | None]:
    config = ProductConfig()
    found = []
    for frame in frames:
        features = root_sift(frame)
        matched = [match(features, frame.shape, view, config)[0] for view in views]
        found.append(max((d for d in matched if d is not None), key=lambda d: d.inliers, default=None))
    return found


SEARCHES: dict[str, Search] = {"whole frame": whole_frame, "coarse to fine": locate}


def frames_of(video: Path) -> list[np.ndarray]:
    return [frame.gray(ProductConfig().working_short_side) for frame in iter_frames(video)]


def made_up_cases(folder: Path, videos: int, seed: int) -> list[Case]:
    world = make_world(folder / "world", videos=videos, seed=seed)
    truth = {row["video_id"]: row for row in pq.read_table(world.truth).to_pylist()}
    products = {row["product_id"]: row for row in pq.read_table(world.products).to_pylist()}

    def views(product_id: str) -> list[View]:
        product = products[product_id]
        outlines = product["image_outlines"] or [None] * len(product["image_uris"])
        images = [(world.folder / uri).read_bytes() for uri in product["image_uris"]]
        return [view_of(image, outline) for image, outline in zip(images, outlines, strict=True)]

    rows = pq.read_table(world.videos).to_pylist()
    cases = []
    for number, row in enumerate(rows):
        frames, true = frames_of(world.folder / row["video_uri"]), truth[row["video_id"]]
        states = zip(true["product_share"], true["occluded"], strict=True)
        quads = [None if quad is None else np.reshape(quad, (-1, 2)) for quad in true["product_quads"]]
        cases.append(Case(frames, views(row["product_id"]), [group_of(*state) for state in states], quads))
        other = rows[(number + 5) % len(rows)]["product_id"]
        if other != row["product_id"]:
            none = [None] * len(frames)
            cases.append(Case(frames, views(other), ["false: made-up look-alike"] * len(frames), list(none)))
    return cases


def group_of(share: float, occluded: bool) -> str:
    if share == 0:
        return "false: made-up, absent"
    if occluded:
        return "made-up, occluded"
    return "made-up, >= 5%" if share >= 0.05 else "made-up, 2-5%" if share >= 0.02 else "made-up, < 2%"


def real_cases() -> list[Case]:
    cases, references = [], []
    for pair in json.loads((DATA / "labels.json").read_text()):
        outline = np.ravel(pair["product_outline_in_reference_px"]).tolist()
        views = [view_of((DATA / pair["reference"]).read_bytes(), outline)]
        references.append(views)
        labels, size = pair["frames"], np.array(pair["size"])
        groups = [
            None
            if label["t"] in NOT_SCORED.get(pair["pair"], ())
            else f"real {pair['pair']}"
            if label["state"] == "visible"
            else f"false: real {pair['pair']}, covered"
            for label in labels
        ]
        polygons = [label["polygon_clipped"] for label in labels]
        quads = [None if polygon is None else np.array(polygon) / size for polygon in polygons]
        cases.append(Case(frames_of(DATA / pair["video"])[: len(labels)], views, groups, quads))
    short_form = [path for path in sorted((DATA / "tiktok_popularity").glob("*.mp4")) if "corrupt" not in path.name]
    for number, path in enumerate(short_form):
        frames = frames_of(path)
        none = [None] * len(frames)
        others = (references[(number + step) % len(references)] for step in (0, 2))
        cases += [Case(frames, views, ["false: real, other video"] * len(frames), list(none)) for views in others]
    return cases


def run(search: Search, cases: list[Case]) -> Result:
    result = Result()
    for case in cases:
        began = time.process_time()
        detections = search(case.frames, case.views)
        a_frame = (time.process_time() - began) / len(case.frames)
        for detection, group, quad in zip(detections, case.groups, case.quads, strict=True):
            if group is None:
                continue
            result.seconds[group] += 1
            result.core_s[group] = result.core_s.get(group, 0.0) + a_frame
            if detection is not None:
                result.found[group] += 1
                if quad is not None:
                    result.ious.setdefault(group, []).append(iou(detection.outline, quad))
    return result


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two polygons in fractions of the frame, within the frame."""
    masks = []
    for polygon in (a, b):
        mask = np.zeros((CANVAS_PX, CANVAS_PX), np.uint8)
        cv2.fillPoly(mask, [np.round(polygon * CANVAS_PX).astype(np.int32)], 1)
        masks.append(mask)
    return float((masks[0] & masks[1]).sum() / max((masks[0] | masks[1]).sum(), 1))


def measured(arguments: tuple[int, int]) -> dict[str, Result]:
    """In the child, which has one thread and the memory settings of the scoring job's PREPARE."""
    videos, seed = arguments
    cv2.setNumThreads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        cases = made_up_cases(Path(folder), videos, seed)
    if DATA.is_dir():
        cases += real_cases()
    return {name: run(search, cases) for name, search in SEARCHES.items()}


def print_table(console: Console, results: dict[str, Result]) -> None:
    table = Table(title=f"found of seconds; IoU mean (least); core-ms a frame. {cpu_model()}")
    table.add_column("group")
    for name in results:
        for column in ("found", "IoU", "ms"):
            table.add_column(f"{name}: {column}", justify="right")
    groups = sorted({group for result in results.values() for group in result.seconds})
    for group in groups:
        cells = []
        for result in results.values():
            seconds, ious = result.seconds[group], result.ious.get(group)
            cells += [
                f"{result.found[group]}/{seconds}",
                f"{np.mean(ious):.3f} ({min(ious):.2f})" if ious else "-",
                f"{1e3 * result.core_s[group] / seconds:.0f}",
            ]
        table.add_row(group, *cells)
    means = [1e3 * sum(r.core_s.values()) / sum(r.seconds.values()) for r in results.values()]
    table.add_row("all", *(cell for mean in means for cell in ("", "", f"{mean:.0f}")))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24, help="made-up videos (default 24)")
    parser.add_argument("--seed", type=int, default=7, help="of the made-up world (default 7)")
    arguments = parser.parse_args()
    console = Console(width=150)
    if not DATA.is_dir():
        console.print(f"{DATA} is not here: made-up videos only")
    with IsolatedWorker("benchmarks.locate:measured") as worker:
        print_table(console, worker.call((arguments.videos, arguments.seed), TIMEOUT_S))


if __name__ == "__main__":
    main()
