"""The plain script that a practitioner would write: the reference to which the scoring job's cost is compared.

    python -m benchmarks.practitioner --videos videos.parquet --products products.parquet --model checkpoint.pt

decord at one frame a second; OpenCV SIFT at 640 px on the frame's long side, brute-force matching with ratio 0.75
and a RANSAC homography; Captum Saliency on the same weights in fp32, one video after another, one thread.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import captum.attr
import cv2
import decord
import numpy as np
import pyarrow.parquet as pq
import torch

from training.models import EngagementModel, load_checkpoint, to_input

LONG_SIDE_PX = 640
RATIO = 0.75
MIN_INLIERS = 10
STAGES = ("decode", "locate", "engage")


class Clock:
    """CPU seconds of this process, all threads, by stage."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.spent[name] += time.process_time() - began


def sampled(path: str) -> np.ndarray:
    """uint8 (S, H, W, 3) RGB, a frame a second."""
    reader = decord.VideoReader(path, num_threads=1)
    wanted = np.arange(0, len(reader) / reader.get_avg_fps(), 1.0)[:60]
    indices = np.minimum(np.round(wanted * reader.get_avg_fps()).astype(int), len(reader) - 1)
    return reader.get_batch(indices.tolist()).asnumpy()


def gray_at_640(picture: np.ndarray) -> np.ndarray:
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, LONG_SIDE_PX / max(gray.shape))
    return cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


class PlainProduct:
    """One catalogue image; where it has an outline, the photo is cut to it."""

    def __init__(self, image: Path, outline: list[float] | None):
        picture = cv2.imread(str(image))
        assert picture is not None, f"{image} cannot be read as an image"
        if outline is not None:
            x, y, w, h = cv2.boundingRect(np.array(outline, np.float32).reshape(-1, 2))
            picture = picture[max(0, y) : y + h, max(0, x) : x + w]
        gray = gray_at_640(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        self.sift = cv2.SIFT_create()
        self.keypoints, self.descriptors = self.sift.detectAndCompute(gray, None)
        height, width = gray.shape
        self.corners = np.array([[[0, 0]], [[width, 0]], [[width, height]], [[0, height]]], np.float32)

    def found_in(self, picture: np.ndarray, size: int) -> np.ndarray | None:
        """bool (size, size), the product's pixels on the grid, or None."""
        gray = gray_at_640(picture)
        keypoints, descriptors = self.sift.detectAndCompute(gray, None)
        if descriptors is None or len(keypoints) < 2:
            return None
        pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(self.descriptors, descriptors, k=2)
        good = [first for first, second in pairs if first.distance < RATIO * second.distance]
        if len(good) < MIN_INLIERS:
            return None
        source = np.array([self.keypoints[m.queryIdx].pt for m in good], np.float32)
        target = np.array([keypoints[m.trainIdx].pt for m in good], np.float32)
        homography, inliers = cv2.findHomography(source, target, cv2.RANSAC, 5.0)
        if homography is None or inliers.sum() < MIN_INLIERS:
            return None
        quad = cv2.perspectiveTransform(self.corners, homography)[:, 0]
        quad *= np.array([size / gray.shape[1], size / gray.shape[0]])
        mask = np.zeros((size, size), np.uint8)
        cv2.fillPoly(mask, [np.round(quad).astype(np.int32)], 1)
        return mask.astype(bool)


def saliency_map(model: EngagementModel, frames: np.ndarray) -> np.ndarray:
    """float32 (S, size, size)."""
    size = model.spec.input_size
    clip = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in frames])
    pixels = to_input(torch.from_numpy(clip[None])).contiguous().requires_grad_(True)
    gradient = captum.attr.Saliency(model).attribute(pixels)
    return gradient[0].amax(dim=0).numpy()


def pe_score(E: np.ndarray, masks: list[np.ndarray | None]) -> float:
    scaled = (E - E.min()) / (E.max() - E.min())
    P = np.stack([np.zeros(E.shape[1:], bool) if mask is None else mask for mask in masks])
    return float((scaled * P).mean())


def read_catalogue(videos: Path, products: Path) -> Iterator[tuple[str, str, Path, list[float] | None]]:
    """video_id, the video's path, its product's first image, the image's outline."""
    images = {row["product_id"]: row for row in pq.read_table(products).to_pylist()}
    for row in pq.read_table(videos).to_pylist():
        product = images[row["product_id"]]
        outlines = product.get("image_outlines")
        image = products.parent / product["image_uris"][0]
        yield row["video_id"], str(videos.parent / row["video_uri"]), image, outlines and outlines[0]


def score(videos: Path, products: Path, checkpoint: Path) -> dict[str, Any]:
    """CPU seconds by stage, minutes of video that were looked at, and pe_score by video_id."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    clock = Clock()
    model = load_checkpoint(checkpoint).eval()
    start_s = time.process_time()
    scores, seconds, found = {}, 0, 0
    references: dict[Path, PlainProduct] = {}
    for video_id, video, image, outline in read_catalogue(videos, products):
        with clock.stage("decode"):
            frames = sampled(video)
        with clock.stage("locate"):
            if image not in references:
                references[image] = PlainProduct(image, outline)
            masks = [references[image].found_in(frame, model.spec.input_size) for frame in frames]
        with clock.stage("engage"):
            scores[video_id] = pe_score(saliency_map(model, frames), masks)
        seconds += len(frames)
        found += sum(mask is not None for mask in masks)
    return {
        "video_minutes": seconds / 60,
        "seconds_found": found,
        "core_seconds": clock.spent,
        "start_core_seconds": start_s,
        "total_core_seconds": time.process_time(),
        "pe_score": scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="Parquet table of videos on this machine")
    parser.add_argument("--products", type=Path, required=True, help="Parquet table of products")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint file")
    parser.add_argument("--output", type=Path, help="also write the figures and scores here, as JSON")
    arguments = parser.parse_args()
    result = score(arguments.videos, arguments.products, arguments.model)
    minutes = result["video_minutes"]
    for stage, spent in result["core_seconds"].items():
        print(f"{stage}: {spent / minutes:.2f} core-seconds a minute of video")
    print(f"start: {result['start_core_seconds']:.1f} core-seconds; {minutes:.2f} minutes of video")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
