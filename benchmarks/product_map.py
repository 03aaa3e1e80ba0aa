"""The product map P put to the test: accuracy, false positives, look-alikes and cost, in one run.

    python -m benchmarks.product_map [--quick]

On composites of made-up packagings (benchmarks/composites.py) over frames of real short-form videos where
../shared/data has them, else over drawn walls, and on the labelled real videos. "plain SIFT" is the product search of
benchmarks/practitioner.py: OpenCV SIFT at 640 px, brute-force matching, RANSAC. --calibrate fits the probability.
"""

import argparse
import collections
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from benchmarks.composites import SWEEPS, Composite, Pose, composites, packaging, recoloured, retitled
from benchmarks.cpu_time import cpu_model
from benchmarks.labelled_videos import DATA, Case, iou, made_up_cases, real_cases, short_form_videos
from benchmarks.practitioner import PlainProduct
from catalog.isolation import IsolatedWorker
from catalog.video import iter_frames
from catalog.world.config import WorldConfig
from catalog.world.scene import draw_background
from scoring.likeness import MIN_UNLIKENESS, likeness
from scoring.prepare import keep_freed_memory
from scoring.product import Detection, Search, View
from scoring.settings import ProductConfig

TIMEOUT_S = 7200.0
PRODUCTS = 20
RESOLUTIONS_PX = (224, 256, 288, 320, 360)
"""short side at which the whole frame is searched"""
HIT_IOU = 0.5
SEED = 1


@dataclass
class Counts:
    frames: int = 0
    hits: int = 0
    """found where the product is"""
    false: int = 0
    """found elsewhere, or where it is not at all"""
    ious: list[float] = field(default_factory=list)
    core_s: float = 0.0

    def add(self, detections: Sequence[Detection | None], quads: Sequence[np.ndarray | None], core_s: float) -> None:
        self.core_s += core_s
        for detection, quad in zip(detections, quads, strict=True):
            self.frames += 1
            overlap = 0.0 if detection is None or quad is None else iou(detection.outline, quad)
            self.hits += overlap >= HIT_IOU
            self.false += detection is not None and overlap < HIT_IOU
            if overlap >= HIT_IOU:
                self.ious.append(overlap)

    @property
    def ms(self) -> float:
        return 1e3 * self.core_s / max(self.frames, 1)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.frames + other.frames,
            self.hits + other.hits,
            self.false + other.false,
            self.ious + other.ious,
            self.core_s + other.core_s,
        )


@dataclass
class Results:
    by_pose: dict[tuple[str, Pose, str], Counts] = field(default_factory=lambda: collections.defaultdict(Counts))
    """keys: sweep, pose, way"""
    look_alikes: dict[str, Counts] = field(default_factory=lambda: collections.defaultdict(Counts))
    videos: dict[tuple[str, str], Counts] = field(default_factory=lambda: collections.defaultdict(Counts))
    """keys: group, way"""
    absent: Counts = field(default_factory=Counts)
    rejections: collections.Counter[str] = field(default_factory=collections.Counter)
    evidence: list[tuple[float, bool]] = field(default_factory=list)
    """likeness, and whether it is the product; only for --calibrate"""


def ways(quick: bool) -> dict[str, ProductConfig]:
    default = ProductConfig()
    sides = () if quick else RESOLUTIONS_PX
    return {"ours": default} | {
        f"at {side} px": dataclasses.replace(default, coarse_short_side=side)
        for side in sides
        if side != default.coarse_short_side
    }


def searched(frames: Sequence[np.ndarray], views: Sequence[View], config: ProductConfig) -> tuple[list, float, Search]:
    began = time.process_time()
    search = Search(frames, config)
    found = search.locate(views)
    return found, time.process_time() - began, search


def plainly_found(pictures: Sequence[np.ndarray], product: PlainProduct) -> tuple[int, float]:
    began = time.process_time()
    found = sum(product.found_in(picture, 112) is not None for picture in pictures)
    return found, time.process_time() - began


def backgrounds() -> list[np.ndarray]:
    if not DATA.is_dir():
        config = WorldConfig(width=576, height=1024)
        return [draw_background(config, np.random.default_rng(seed))[:1024, :576] for seed in range(40)]
    frames = [frame.rgb() for path in short_form_videos() for frame in list(iter_frames(path))[1::4]]
    return [cv2.resize(frame, (576, 1024), interpolation=cv2.INTER_AREA) for frame in frames]


def gray(composite: Composite) -> np.ndarray:
    return cv2.cvtColor(composite.frame, cv2.COLOR_RGB2GRAY)


def plain_product(folder: Path, front: np.ndarray) -> PlainProduct:
    path = folder / "front.png"
    cv2.imwrite(str(path), cv2.cvtColor(front, cv2.COLOR_RGB2BGR))
    return PlainProduct(path, None)


def measure_composites(results: Results, fronts: dict[int, np.ndarray], views: dict[int, list[View]], quick: bool):
    behind = backgrounds()
    with tempfile.TemporaryDirectory() as folder:
        plain = {product: plain_product(Path(folder), front) for product, front in fronts.items()}
    for sweep, poses in SWEEPS.items():
        for pose in poses:
            for number, made in enumerate(composites(SEED, pose, fronts, behind, 10 if quick else 60)):
                frame = gray(made)
                for way, config in ways(quick).items():
                    found, core_s, _ = searched([frame], views[made.product], config)
                    results.by_pose[sweep, pose, way].add(found, [made.quad], core_s)
                if number % 3 == 0:
                    hits, core_s = plainly_found([made.frame], plain[made.product])
                    results.by_pose[sweep, pose, "plain SIFT"] += Counts(1, hits, core_s=core_s)


def measure_look_alikes(results: Results, fronts: dict[int, np.ndarray], views: dict[int, list[View]], quick: bool):
    behind = backgrounds()
    kinds = {
        "another family of one layout": lambda p: packaging(SEED, 3 * ((p // 3 + 7) % PRODUCTS))[0],
        "the same family": lambda p: packaging(SEED, p + 1)[0],
        "same print, other title and emblem": lambda p: retitled(fronts[p], packaging(SEED, p + 1)[0]),
        "same print, other colours": lambda p: recoloured(fronts[p], 120),
    }
    for kind, other in kinds.items():
        others = {product: other(product) for product in fronts}
        for share in (0.05, 0.10, 0.20):
            for made in composites(SEED + 1, Pose(share=share), others, behind, 10 if quick else 40):
                found, core_s, _ = searched([gray(made)], views[made.product], ProductConfig())
                results.look_alikes[kind].add(found, [None], core_s)


def measure_videos(results: Results, cases: Sequence[Case], quick: bool) -> None:
    for case in cases:
        for way, config in ways(quick).items():
            found, core_s, search = searched(case.frames, case.views, config)
            for detection, group, quad in zip(found, case.groups, case.quads, strict=True):
                if group is not None:
                    results.videos[group, way].add([detection], [quad], core_s / len(found))
            if way == "ours":
                results.rejections += search.rejections
        plain = PlainProduct(case.image, case.outline)
        for frame, group in zip(case.frames, case.groups, strict=True):
            if group is not None:
                found, core_s = plainly_found([cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)], plain)
                is_false = group.startswith("false")
                results.videos[group, "plain SIFT"] += Counts(1, found * (not is_false), found * is_false, [], core_s)


def measure_absent(results: Results, products: Sequence[list[View]], quick: bool) -> None:
    """Every product that none of the videos shows, in every second of them."""
    for path in short_form_videos():
        frames = [frame.gray(ProductConfig().working_short_side) for frame in iter_frames(path)]
        search = Search(frames)
        for views in products[:: 4 if quick else 1]:
            results.absent.add(search.locate(views), [None] * len(frames), 0.0)
        results.rejections += search.rejections


def measure_cost_of_absence(results: Results, views: list[View], plain: PlainProduct, quick: bool) -> None:
    for path in short_form_videos():
        frames = [frame.gray(ProductConfig().working_short_side) for frame in iter_frames(path)]
        for way, config in ways(quick).items():
            found, core_s, _ = searched(frames, views, config)
            results.videos["false: real, other video", way].add(found, [None] * len(frames), core_s)
        pictures = [cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB) for frame in frames[::3]]
        hits, core_s = plainly_found(pictures, plain)
        results.videos["false: real, other video", "plain SIFT"] += Counts(len(pictures), 0, hits, core_s=core_s)


def measured(arguments: tuple[bool]) -> Results:
    """In the child, which has one thread and the memory settings of the scoring job's PREPARE."""
    (quick,) = arguments
    cv2.setNumThreads(1)
    keep_freed_memory()
    results = Results()
    made = {3 * number: packaging(SEED, 3 * number) for number in range(PRODUCTS)}
    fronts, views = {p: front for p, (front, _) in made.items()}, {p: views for p, (_, views) in made.items()}
    measure_composites(results, fronts, views, quick)
    measure_look_alikes(results, fronts, views, quick)
    with tempfile.TemporaryDirectory() as folder:
        measure_videos(results, made_up_cases(Path(folder), 3 if quick else 24, SEED), quick)
    if DATA.is_dir():
        cases = real_cases()
        measure_videos(results, cases, quick)
        references = [case.views for case in cases]
        strangers = [packaging(SEED + 2, 3 * number)[1] for number in range(70)]
        measure_absent(results, references + list(views.values()) + strangers, quick)
        with tempfile.TemporaryDirectory() as folder:
            measure_cost_of_absence(results, views[0], plain_product(Path(folder), fronts[0]), quick)
    return results


def calibration(arguments: tuple[int]) -> list[tuple[float, bool]]:
    """In the child: likeness of every fit that the matches allow, and whether it is the product."""
    cv2.setNumThreads(1)
    config = dataclasses.replace(ProductConfig(), min_probability=0.0)
    made = {3 * number: packaging(SEED + 5, 3 * number) for number in range(PRODUCTS)}
    fronts, behind = {p: front for p, (front, _) in made.items()}, backgrounds()
    neighbours = {p: packaging(SEED + 5, p + 1)[0] for p in fronts}
    strangers = {p: packaging(SEED + 5, 3 * ((p // 3 + 7) % PRODUCTS))[0] for p in fronts}
    evidence = []

    def look(shown: dict[int, np.ndarray], pose: Pose, is_product: bool, seed: int) -> None:
        for composite in composites(seed, pose, shown, behind, arguments[0]):
            views = made[composite.product][1]
            found, _, search = searched([gray(composite)], views, config)
            if found[0] is not None:
                right = is_product and iou(found[0].outline, composite.quad) >= HIT_IOU
                frame = search.frames[0]
                quad = (found[0].quad * frame.size).astype(np.float32)
                like = likeness(frame.gray, views[0], cv2.getPerspectiveTransform(views[0].corners, quad))
                evidence.append((like, right))

    for pose in {pose for poses in SWEEPS.values() for pose in poses}:
        look(fronts, pose, True, SEED + 6)
    for share in (0.02, 0.05, 0.10, 0.20):
        for blur in (0.8, 3.0):
            look(neighbours, Pose(share=share, blur_px=blur), False, SEED + 7)
            look(strangers, Pose(share=share, blur_px=blur), False, SEED + 8)
    return evidence


def print_calibration(console: Console, evidence: list[tuple[float, bool]]) -> None:
    likenesses, is_product = (np.array(values) for values in zip(*evidence, strict=True))
    logarithms = np.log(np.maximum(1 - likenesses, MIN_UNLIKENESS))[:, None]
    model = LogisticRegression(C=1e3).fit(logarithms, is_product)
    probabilities = model.predict_proba(logarithms)[:, 1]
    console.print(
        f"CALIBRATION = ({-model.coef_[0, 0]:.2f}, {-model.intercept_[0]:.2f}): {is_product.sum()} fits of the "
        f"product, {(~is_product).sum()} of look-alikes; Brier {np.mean((probabilities - is_product) ** 2):.4f}"
    )
    table = Table(title="calibration")
    for column in ("probability", "fits", "of the product"):
        table.add_column(column, justify="right")
    edges = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0001)
    for low, high in itertools.pairwise(edges):
        within = (probabilities >= low) & (probabilities < high)
        share = f"{is_product[within].mean():.3f}" if within.any() else "-"
        table.add_row(f"{low:g} to {min(high, 1):g}", str(within.sum()), share)
    console.print(table)


def rows_of_poses(results: Results) -> Iterator[list[Any]]:
    names = [*dict.fromkeys(way for _, _, way in results.by_pose)]
    for sweep, poses in SWEEPS.items():
        for pose in poses:
            cells = [results.by_pose[sweep, pose, way] for way in names]
            value = {"share of frame": pose.share, "blur, px": pose.blur_px, "tilt, degrees": pose.tilt_degrees}
            ours = cells[names.index("ours")]
            yield [
                f"{sweep} {value.get(sweep, pose.occluded):g}",
                *(f"{c.hits / max(c.frames, 1):.2f}" for c in cells),
                f"{ours.hits / max(ours.hits + ours.false, 1):.2f}",
                f"{np.median(ours.ious):.3f}" if ours.ious else "-",
            ]


def print_results(console: Console, results: Results) -> None:
    names = [*dict.fromkeys(way for _, _, way in results.by_pose)]
    table = Table(title=f"composites: recall; precision and median IoU of ours. {cpu_model()}")
    for column in ("", *names, "precision", "IoU"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows_of_poses(results):
        table.add_row(*row)
    console.print(table)

    table = Table(title="videos: seconds found of seconds; IoU median of ours")
    groups = sorted({group for group, _ in results.videos})
    for column in ("", *names, "IoU"):
        table.add_column(column, justify="left" if not column else "right")
    for group in groups:
        cells = [results.videos[group, way] for way in names]
        ours = results.videos[group, "ours"]
        found = [f"{c.false if group.startswith('false') else c.hits}/{c.frames}" for c in cells]
        table.add_row(group, *found, f"{np.median(ours.ious):.3f}" if ours.ious else "-")
    console.print(table)
    console.print(
        f"product-absent seconds (other products in the short-form videos): {results.absent.false} false of "
        f"{results.absent.frames}"
    )
    for kind, counts in results.look_alikes.items():
        console.print(f"look-alikes, {kind}: taken for the product in {counts.false} of {counts.frames}")
    console.print(f"why not found: {dict(results.rejections.most_common())}")

    table = Table(title="core-ms a frame, and recall over all composites and labelled seconds")
    for column in ("way", "composites", "known videos", "other videos", "all", "plain / this", "recall"):
        table.add_column(column, justify="left" if column == "way" else "right")
    totals = {way: _totals(results, way) for way in names}
    plain = totals["plain SIFT"][3].ms
    for way, parts in totals.items():
        shown = parts[0] + sum((c for (g, w), c in results.videos.items() if w == way and "false" not in g), Counts())
        costs = [f"{part.ms:.1f}" for part in parts]
        recall = f"{shown.hits / max(shown.frames, 1):.3f}"
        table.add_row(way, *costs, f"{plain / max(parts[3].ms, 1e-9):.2f}", recall)
    console.print(table)


def _totals(results: Results, way: str) -> tuple[Counts, Counts, Counts, Counts]:
    """Composites, videos of known seconds, other videos, and the three together, each weighing a third."""
    made = sum((c for (_, _, w), c in results.by_pose.items() if w == way), Counts())
    labelled = sum((c for (g, w), c in results.videos.items() if w == way and "other video" not in g), Counts())
    other = results.videos.get(("false: real, other video", way), Counts())
    parts = [part for part in (made, labelled, other) if part.frames]
    return made, labelled, other, Counts(1, core_s=sum(part.ms for part in parts) / len(parts) / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer frames, one resolution: two minutes")
    parser.add_argument("--calibrate", action="store_true", help="fit the probability instead")
    arguments = parser.parse_args()
    console = Console(width=160)
    if arguments.calibrate:
        with IsolatedWorker("benchmarks.product_map:calibration") as worker:
            print_calibration(console, worker.call((PRODUCTS,), TIMEOUT_S))
        return
    with IsolatedWorker("benchmarks.product_map:measured") as worker:
        print_results(console, worker.call((arguments.quick,), TIMEOUT_S))


if __name__ == "__main__":
    main()
