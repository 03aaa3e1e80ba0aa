"""Videos whose products are known second by second, for benchmarks/product_map.py: made-up ones, and the labelled real
ones of ../shared/data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from catalog.video import iter_frames
from catalog.world import make_world
from scoring.product import View, view_of
from scoring.settings import ProductConfig
from training.decode import network_input

DATA = Path(__file__).parents[1] / "../shared/data"
CANVAS_PX = 360
NOT_SCORED = {"mug": (6, 11, 14)}
"""seconds in which a third of the product shows: neither found nor absent"""


@dataclass(frozen=True)
class Case:
    """Frames of one video beside one product, and per second the group it counts in and the true quad."""

    frames: list[np.ndarray]
    colours: list[np.ndarray]
    views: list[View]
    image: Path
    """the product's catalogue photo"""
    outline: list[float] | None
    """the product in it"""
    groups: Sequence[str | None]
    """named "false: ..." where the product does not show; None: not counted"""
    quads: Sequence[np.ndarray | None]
    """(K, 2), fractions of the frame"""


def frames_of(video: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Its sampled frames in grey, and small in colour, as the scoring job gives them to the search."""
    frames = list(iter_frames(video))
    return [frame.gray(ProductConfig().working_short_side) for frame in frames], [network_input(f, 112) for f in frames]


def made_up_cases(folder: Path, videos: int, seed: int) -> list[Case]:
    world = make_world(folder / "world", videos=videos, seed=seed)
    truth = {row["video_id"]: row for row in pq.read_table(world.truth).to_pylist()}
    products = {row["product_id"]: row for row in pq.read_table(world.products).to_pylist()}

    def product_of(product_id: str) -> tuple[list[View], Path, list[float] | None]:
        product = products[product_id]
        outlines = product["image_outlines"] or [None] * len(product["image_uris"])
        images = [world.folder / uri for uri in product["image_uris"]]
        views = [view_of(image.read_bytes(), outline) for image, outline in zip(images, outlines, strict=True)]
        return views, images[0], outlines[0]

    rows = pq.read_table(world.videos).to_pylist()
    cases = []
    for number, row in enumerate(rows):
        (frames, colours), true = frames_of(world.folder / row["video_uri"]), truth[row["video_id"]]
        states = zip(true["product_share"], true["occluded"], strict=True)
        quads = [None if quad is None else np.reshape(quad, (-1, 2)) for quad in true["product_quads"]]
        groups = [group_of(*state) for state in states]
        cases.append(Case(frames, colours, *product_of(row["product_id"]), groups, quads))
        other = rows[(number + 5) % len(rows)]["product_id"]
        if other != row["product_id"]:
            none = [None] * len(frames)
            groups = ["false: made-up look-alike"] * len(frames)
            cases.append(Case(frames, colours, *product_of(other), groups, list(none)))
    return cases


def group_of(share: float, occluded: bool) -> str:
    if share == 0:
        return "false: made-up, absent"
    if occluded:
        return "made-up, occluded"
    return "made-up, >= 5%" if share >= 0.05 else "made-up, 2-5%" if share >= 0.02 else "made-up, < 2%"


def short_form_videos() -> list[Path]:
    return [path for path in sorted((DATA / "tiktok_popularity").glob("*.mp4")) if "corrupt" not in path.name]


def real_cases() -> list[Case]:
    cases = []
    for pair in json.loads((DATA / "labels.json").read_text()):
        outline, image = np.ravel(pair["product_outline_in_reference_px"]).tolist(), DATA / pair["reference"]
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
        frames, colours = (film[: len(labels)] for film in frames_of(DATA / pair["video"]))
        cases.append(Case(frames, colours, [view_of(image.read_bytes(), outline)], image, outline, groups, quads))
    return cases


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two polygons in fractions of the frame, within the frame."""
    masks = []
    for polygon in (a, b):
        mask = np.zeros((CANVAS_PX, CANVAS_PX), np.uint8)
        cv2.fillPoly(mask, [np.round(polygon * CANVAS_PX).astype(np.int32)], 1)
        masks.append(mask)
    return float((masks[0] & masks[1]).sum() / max((masks[0] | masks[1]).sum(), 1))
