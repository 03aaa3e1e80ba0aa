"""The product map P put to the test: accuracy, false positives, look-alikes and cost, in one run.

    python -m benchmarks.product_map [--quick] [--parts composites costs]

On composites of made-up packagings (benchmarks/composites.py) over frames of real short-form videos where
../shared/data has them, else over drawn walls, and on the labelled real videos. "plain SIFT" is the product search of
benchmarks/practitioner.py: OpenCV SIFT at 640 px, brute-force matching, RANSAC. --calibrate fits the probability.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from benchmarks.composites import SWEEPS, Composite, Pose, composites, packaging, placed, recoloured, retitled
from benchmarks.labelled_videos import DATA, Case, frames_of, iou, made_up_cases, real_cases, short_form_videos
from benchmarks.practitioner import PlainProduct, sampled
from benchmarks.product_map_tables import HIT_IOU, Counts, Results, print_calibration, print_costs, print_results
from catalog.isolation import IsolatedWorker
from catalog.sampling import SamplingConfig
from catalog.video import iter_frames
from catalog.world.config import WorldConfig
from catalog.world.scene import draw_background
from scoring.likeness import likeness
from scoring.prepare import Request, keep_freed_memory, make_prepare
from scoring.product import ProductIndex, Search, View
from scoring.settings import ProductConfig

TIMEOUT_S = 7200.0
PARTS = ("composites", "copies", "look-alikes", "made-up videos", "real videos", "absent", "costs")
PRODUCTS = 20
FRAMES = 40
"""a row of composites"""
RESOLUTIONS_PX = (224, 256, 288, 320, 360)
"""short side at which the whole frame is searched"""
SEED = 1


def ways(quick: bool) -> dict[str, ProductConfig]:
    default = ProductConfig()
    sides = () if quick else RESOLUTIONS_PX
    return {"ours": default} | {
        f"at {side} px": dataclasses.replace(default, coarse_short_side=side)
        for side in sides
        if side != default.coarse_short_side
    }


def searched(
    frames: Sequence[np.ndarray],
    views: Sequence[View],
    config: ProductConfig,
    colours: Sequence[np.ndarray] | None = None,
) -> tuple[list, float, Search]:
    began = time.process_time()
    search = Search(frames, config, colours)
    found = search.locate(views)
    return found, time.process_time() - began, search


def plainly_found(pictures: Iterable[np.ndarray], product: PlainProduct) -> tuple[int, float]:
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


def small(composite: Composite) -> np.ndarray:
    """What PREPARE has of a frame in colour: the model's input."""
    return cv2.resize(composite.frame, (112, 112), interpolation=cv2.INTER_AREA)


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
            for number, made in enumerate(composites(SEED, pose, fronts, behind, 10 if quick else FRAMES)):
                frame = gray(made)
                for way, config in ways(quick).items():
                    found, core_s, _ = searched([frame], views[made.product], config, [small(made)])
                    results.by_pose[sweep, pose, way].add(found, [made.quad], core_s)
                if number % 3 == 0:
                    hits, core_s = plainly_found([made.frame], plain[made.product])
                    results.by_pose[sweep, pose, "plain SIFT"] += Counts(1, hits, core_s=core_s)


def measure_copies(results: Results, fronts: dict[int, np.ndarray], views: dict[int, list[View]], quick: bool):
    """The product twice in a frame; the first goes through noise and JPEG twice."""
    behind = backgrounds()
    for share in (0.02, 0.05, 0.10):
        pose = Pose(share=share)
        for one in composites(SEED + 2, pose, fronts, behind, 10 if quick else FRAMES):
            rng, other = np.random.default_rng(round(1e6 * one.quad.sum())), one
            while iou(one.quad, other.quad) > 0:
                other = placed(one.frame, fronts[one.product], one.product, pose, rng)
            found, _, _ = searched([gray(other)], views[one.product], ProductConfig(), [small(other)])
            results.copies[share].add_copies(found[0], [one.quad, other.quad])


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
            for made in composites(SEED + 1, Pose(share=share), others, behind, 10 if quick else FRAMES):
                found, core_s, _ = searched([gray(made)], views[made.product], ProductConfig(), [small(made)])
                results.look_alikes[kind].add(found, [None], core_s)


def measure_videos(results: Results, cases: Sequence[Case], quick: bool) -> None:
    for case in cases:
        for way, config in ways(quick).items():
            found, core_s, search = searched(case.frames, case.views, config, case.colours)
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


def measure_absent(results: Results, cases: Sequence[Case], products: Sequence[list[View]], quick: bool) -> None:
    """Products in every second of videos that do not show them: all in short-form videos, the labelled ones in the
    labelled videos of others."""

    def look(group: str, frames: Sequence[np.ndarray], colours: Sequence[np.ndarray], absent: Sequence[list[View]]):
        search = Search(frames, None, colours)
        for views in absent:
            results.absent[group].add(search.locate(views), [None] * len(frames), 0.0)
        results.rejections += search.rejections

    for path in short_form_videos():
        look("short-form videos", *frames_of(path), products[:: 4 if quick else 1])
    photos = {case.image: case.views for case in cases}
    for case in cases:
        others = [views for image, views in photos.items() if image != case.image]
        look("labelled videos, another's product", case.frames, case.colours, others)


def measure_cost_of_absence(results: Results, views: list[View], plain: PlainProduct, quick: bool) -> None:
    for path in short_form_videos():
        frames, colours = frames_of(path)
        for way, config in ways(quick).items():
            found, core_s, _ = searched(frames, views, config, colours)
            results.videos["false: real, other video", way].add(found, [None] * len(frames), core_s)
        pictures = [cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB) for frame in frames[::3]]
        hits, core_s = plainly_found(pictures, plain)
        results.videos["false: real, other video", "plain SIFT"] += Counts(len(pictures), 0, hits, core_s=core_s)


def measure_prepare(results: Results, front: np.ndarray) -> None:
    """PREPARE of the scoring job beside decoding and search of the practitioner's script, on the same videos."""
    with tempfile.TemporaryDirectory() as folder:
        plain = plain_product(Path(folder), front)
        prepare = make_prepare(SamplingConfig(), ProductConfig(), 112)
        for path in short_form_videos():
            prepared = prepare(Request(str(path), "front", (f"{folder}/front.png",)))
            for stage, core_s in prepared.core_seconds.items():
                results.prepare["ours", stage] += core_s
            began = time.process_time()
            frames = sampled(str(path))
            results.prepare["plain", "decode"] += time.process_time() - began
            results.prepare["plain", "locate"] += plainly_found(frames, plain)[1]
            results.prepare_minutes += len(prepared.clip) / 60


def measure_index(results: Results, products: Sequence[np.ndarray]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = [cv2.imencode(".jpg", cv2.cvtColor(front, cv2.COLOR_RGB2BGR))[1].tobytes() for front in products]
        for name in ("build", "look up"):
            index = ProductIndex(folder=folder)
            began = time.process_time()
            for number, image in enumerate(images):
                index.add(str(number), [image], [None])
            results.index[f"{name}, core-ms a product"] = 1e3 * (time.process_time() - began) / len(images)
        stored = sum(file.stat().st_size for file in Path(folder).iterdir())
        results.index["bytes a product"] = stored / len(images)


def measured(arguments: tuple[bool, Sequence[str]]) -> Results:
    """In the child, which has one thread and the memory settings of the scoring job's PREPARE."""
    quick, parts = arguments
    cv2.setNumThreads(1)
    keep_freed_memory()
    results = Results()
    made = {3 * number: packaging(SEED, 3 * number) for number in range(PRODUCTS)}
    fronts, views = {p: front for p, (front, _) in made.items()}, {p: views for p, (_, views) in made.items()}
    if "composites" in parts:
        measure_composites(results, fronts, views, quick)
    if "copies" in parts:
        measure_copies(results, fronts, views, quick)
    if "look-alikes" in parts:
        measure_look_alikes(results, fronts, views, quick)
    if "made-up videos" in parts:
        with tempfile.TemporaryDirectory() as folder:
            measure_videos(results, made_up_cases(Path(folder), 3 if quick else 24, SEED), quick)
    real = real_cases() if DATA.is_dir() else []
    if "real videos" in parts:
        measure_videos(results, real, quick)
    if "absent" in parts and real:
        strangers = [packaging(SEED + 2, 3 * number)[1] for number in range(70)]
        measure_absent(results, real, [case.views for case in real] + list(views.values()) + strangers, quick)
    if "costs" in parts:
        if real:
            with tempfile.TemporaryDirectory() as folder:
                measure_cost_of_absence(results, views[0], plain_product(Path(folder), fronts[0]), quick)
            measure_prepare(results, fronts[0])
        measure_index(results, [*fronts.values(), *(packaging(SEED + 3, p)[0] for p in range(0 if quick else 80))])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer frames, one resolution: two minutes")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="default: all")
    parser.add_argument("--calibrate", action="store_true", help="fit the probability instead")
    arguments = parser.parse_args()
    console = Console(width=160)
    if arguments.calibrate:
        with IsolatedWorker("benchmarks.product_map:calibration") as worker:
            print_calibration(console, worker.call((PRODUCTS,), TIMEOUT_S))
        return
    with IsolatedWorker("benchmarks.product_map:measured") as worker:
        results = worker.call((arguments.quick, arguments.parts), TIMEOUT_S)
    print_results(console, results)
    print_costs(console, results)


if __name__ == "__main__":
    main()
