"""What benchmarks/product_map.py counts, and its tables."""

import collections
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from benchmarks.composites import SWEEPS, Pose
from benchmarks.cpu_time import cpu_model
from benchmarks.labelled_videos import iou
from scoring.likeness import MIN_UNLIKENESS
from scoring.product import Detection

HIT_IOU = 0.5


@dataclass
class Counts:
    frames: int = 0
    hits: int = 0
    """found where the product is"""
    false: int = 0
    """found elsewhere, once more, or where it is not at all"""
    ious: list[float] = field(default_factory=list)
    core_s: float = 0.0

    def add(self, detections: Sequence[Detection | None], quads: Sequence[np.ndarray | None], core_s: float) -> None:
        self.core_s += core_s
        for detection, quad in zip(detections, quads, strict=True):
            self.frames += 1
            overlap = 0.0 if detection is None or quad is None else iou(detection.outline, quad)
            self.hits += overlap >= HIT_IOU
            self.false += detection is not None and overlap < HIT_IOU
            self.false += 0 if detection is None else len(detection.copies)
            if overlap >= HIT_IOU:
                self.ious.append(overlap)

    def add_copies(self, detection: Detection | None, quads: Sequence[np.ndarray]) -> None:
        """One frame that shows the product several times; ``frames`` counts what there is to find."""
        found = detection.everywhere if detection else []
        overlaps = [max((iou(one.outline, quad) for one in found), default=0.0) for quad in quads]
        right = [overlap for overlap in overlaps if overlap >= HIT_IOU]
        self.frames += len(quads)
        self.hits += len(right)
        self.false += len(found) - len(right)
        self.ious += right

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
    copies: dict[float, Counts] = field(default_factory=lambda: collections.defaultdict(Counts))
    """key: share of the frame of each"""
    absent: dict[str, Counts] = field(default_factory=lambda: collections.defaultdict(Counts))
    """key: whose products in which videos"""
    rejections: collections.Counter[str] = field(default_factory=collections.Counter)
    prepare: dict[tuple[str, str], float] = field(default_factory=lambda: collections.defaultdict(float))
    """core-seconds by way and stage"""
    prepare_minutes: float = 0.0
    index: dict[str, float] = field(default_factory=dict)


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
                *(_recall_and_precision(*cell) for cell in zip(names, cells, strict=True)),
                f"{np.median(ours.ious):.3f}" if ours.ious else "-",
            ]


def _recall_and_precision(way: str, counts: Counts) -> str:
    recall = f"{counts.hits / max(counts.frames, 1):.2f}"
    # of the plain search only whether it found something is known
    return recall if way == "plain SIFT" else f"{recall} / {counts.hits / max(counts.hits + counts.false, 1):.2f}"


def print_results(console: Console, results: Results) -> None:
    """The tables of what was measured."""
    if results.by_pose:
        names = [*dict.fromkeys(way for _, _, way in results.by_pose)]
        table = Table(title=f"composites: recall / precision; median IoU of ours. {cpu_model()}")
        for column in ("", *names, "IoU"):
            table.add_column(column, justify="left" if not column else "right")
        for row in rows_of_poses(results):
            table.add_row(*row)
        console.print(table)
    if results.videos:
        console.print(_table_of_videos(results))
    for group, counts in results.absent.items():
        console.print(f"false: {group}: {counts.false} of {counts.frames} s")
    for share, counts in results.copies.items():
        console.print(
            f"two of the product in one frame, each {share:g} of it: {counts.hits} of {counts.frames} found, "
            f"{counts.false} false, median IoU {np.median(counts.ious or np.nan):.3f}"
        )
    for kind, counts in results.look_alikes.items():
        console.print(f"look-alikes, {kind}: taken for the product in {counts.false} of {counts.frames}")
    if results.rejections:
        console.print(f"why not found: { {str(k): n for k, n in results.rejections.most_common()} }")
    if results.by_pose or results.videos:
        console.print(_table_of_costs(results))


def _table_of_videos(results: Results) -> Table:
    names = [*dict.fromkeys(way for _, way in results.videos)]
    table = Table(title="videos: seconds found of seconds; IoU median of ours")
    for column in ("", *names, "IoU"):
        table.add_column(column, justify="left" if not column else "right")
    for group in sorted({group for group, _ in results.videos}):
        cells = [results.videos[group, way] for way in names]
        ours = results.videos[group, "ours"]
        found = [f"{c.false if group.startswith('false') else c.hits}/{c.frames}" for c in cells]
        table.add_row(group, *found, f"{np.median(ours.ious):.3f}" if ours.ious else "-")
    return table


def _table_of_costs(results: Results) -> Table:
    table = Table(title=f"core-ms a frame, and recall over all composites and known seconds. {cpu_model()}")
    for column in ("way", "composites", "known videos", "other videos", "all", "plain / this", "recall"):
        table.add_column(column, justify="left" if column == "way" else "right")
    names = dict.fromkeys([*(way for _, _, way in results.by_pose), *(way for _, way in results.videos)])
    totals = {way: _totals(results, way) for way in names}
    plain = totals["plain SIFT"][3].ms
    for way, parts in totals.items():
        shown = parts[0] + sum((c for (g, w), c in results.videos.items() if w == way and "false" not in g), Counts())
        costs = [f"{part.ms:.1f}" if part.frames else "-" for part in parts]
        recall = f"{shown.hits / shown.frames:.3f}" if shown.frames else "-"
        table.add_row(way, *costs, f"{plain / parts[3].ms:.2f}", recall)
    return table


def print_costs(console: Console, results: Results) -> None:
    if results.prepare_minutes:
        spent = {key: core_s / results.prepare_minutes for key, core_s in results.prepare.items()}
        ours, plain = (sum(s for (way, _), s in spent.items() if way == name) for name in ("ours", "plain"))
        by_stage = ", ".join(f"{way} {stage} {core_s:.2f}" for (way, stage), core_s in spent.items())
        console.print(
            f"PREPARE, core-seconds a minute of short-form video: {by_stage}; plain / ours {plain / ours:.2f}"
        )
    if results.index:
        console.print("product index: " + ", ".join(f"{name} {value:,.1f}" for name, value in results.index.items()))


def _totals(results: Results, way: str) -> tuple[Counts, Counts, Counts, Counts]:
    """Composites, videos of known seconds, other videos, and the three together, each weighing a third."""
    made = sum((c for (_, _, w), c in results.by_pose.items() if w == way), Counts())
    labelled = sum((c for (g, w), c in results.videos.items() if w == way and "other video" not in g), Counts())
    other = results.videos.get(("false: real, other video", way), Counts())
    parts = [part for part in (made, labelled, other) if part.frames]
    return made, labelled, other, Counts(1, core_s=sum(part.ms for part in parts) / len(parts) / 1e3)
