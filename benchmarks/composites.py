"""Made-up frames with one product of known outline, for the tables of benchmarks/product_map.py."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from catalog.world.geometry import tilted_corners
from catalog.world.packaging import draw_packaging, photograph
from scoring.catalogue_image import View, view_of

WIDTH, HEIGHT = 576, 1024
JPEG_QUALITY = 60
NOISE_STD = 3.0


@dataclass(frozen=True)
class Pose:
    """How a product is seen in a frame."""

    share: float = 0.10
    """of the frame's area"""
    tilt_degrees: float = 15.0
    """of its face out of the picture plane"""
    blur_px: float = 0.8
    """Gaussian sigma, pixels of the 576 x 1024 frame"""
    occluded: float = 0.0
    """share of its face behind something"""


SWEEPS: dict[str, tuple[Pose, ...]] = {
    "share of frame": tuple(Pose(share=share) for share in (0.01, 0.02, 0.05, 0.10, 0.20)),
    "blur, px": tuple(Pose(blur_px=blur) for blur in (0.0, 1.5, 2.5, 3.5, 5.0)),
    "tilt, degrees": tuple(Pose(tilt_degrees=tilt) for tilt in (0.0, 30.0, 45.0, 60.0, 70.0)),
    "occluded": tuple(Pose(occluded=share) for share in (0.2, 0.4, 0.6)),
}


@dataclass(frozen=True)
class Composite:
    frame: np.ndarray
    """uint8 (HEIGHT, WIDTH, 3) RGB"""
    quad: np.ndarray
    """(4, 2), fractions of the frame"""
    product: int


def packaging(seed: int, product: int) -> tuple[np.ndarray, list[View]]:
    """The product's front, and the views that its catalogue photo gives."""
    front = draw_packaging(seed, product)
    photo = photograph(front, np.random.default_rng([seed, product, 5]))
    pixels = cv2.cvtColor(photo.pixels, cv2.COLOR_RGB2BGR if photo.pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    return front, [view_of(cv2.imencode(photo.suffix, pixels)[1].tobytes())]


def composites(
    seed: int, pose: Pose, fronts: dict[int, np.ndarray], backgrounds: Sequence[np.ndarray], count: int
) -> Iterator[Composite]:
    """``count`` frames, the products and backgrounds in turn."""
    products = sorted(fronts)
    for number in range(count):
        rng = np.random.default_rng([seed, number, *(round(1000 * v) for v in vars(pose).values())])
        product = products[number % len(products)]
        background = backgrounds[int(rng.integers(len(backgrounds)))]
        yield placed(background, fronts[product], product, pose, rng)


def placed(background: np.ndarray, front: np.ndarray, product: int, pose: Pose, rng: np.random.Generator) -> Composite:
    tilt, about = np.deg2rad(pose.tilt_degrees), rng.uniform(0, 2 * np.pi)
    shape = tilted_corners(
        front.shape[1] / front.shape[0], rng.normal(0, 0.3), tilt * np.cos(about), tilt * np.sin(about)
    )
    shape = shape * np.sqrt(pose.share * WIDTH * HEIGHT)
    low, high = -shape.min(axis=0), np.array([WIDTH, HEIGHT]) - shape.max(axis=0)
    quad = shape + rng.uniform(np.minimum(low, high), np.maximum(low, high))
    height, width = front.shape[:2]
    zoom = 4  # supersampled, so that a small product is not aliased
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    left, top = np.floor(quad.min(axis=0)).astype(int) - 2
    right, bottom = np.ceil(quad.max(axis=0)).astype(int) + 2
    size = (int(right - left), int(bottom - top))
    homography = cv2.getPerspectiveTransform(corners, (zoom * (quad - (left, top))).astype(np.float32))
    big = (zoom * size[0], zoom * size[1])
    print_ = cv2.resize(cv2.warpPerspective(front, homography, big), size, interpolation=cv2.INTER_AREA)
    alpha = cv2.warpPerspective(np.full((height, width), 255, np.uint8), homography, big)
    alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)[:, :, None] / 255
    if pose.occluded:
        alpha[_covered(alpha[:, :, 0] > 0.5, pose.occluded, rng)] = 0
    room = max(size)
    canvas = cv2.copyMakeBorder(background, room, room, room, room, cv2.BORDER_REPLICATE)
    part = canvas[room + top :, room + left :][: size[1], : size[0]]
    light = rng.uniform(0.75, 1.2) + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, size[0])[None, :, None]
    part[:] = (part * (1 - alpha) + (print_ * light).clip(0, 255) * alpha).astype(np.uint8)
    frame = canvas[room : room + HEIGHT, room : room + WIDTH].astype(np.float32)
    if pose.blur_px:
        frame = cv2.GaussianBlur(frame, (0, 0), pose.blur_px)
    frame = (frame + rng.normal(0, NOISE_STD, frame.shape)).clip(0, 255).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    shown = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    assert shown is not None
    return Composite(shown, quad / (WIDTH, HEIGHT), product)


def _covered(face: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """bool mask: what lies on one side of a line that cuts ``share`` of the face off."""
    y, x = np.indices(face.shape)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    return along < np.quantile(along[face], share)


def recoloured(front: np.ndarray, turn_degrees: float) -> np.ndarray:
    """Another flavour: the same print in other colours."""
    hls = cv2.cvtColor(front, cv2.COLOR_RGB2HLS)
    hls[:, :, 0] = (hls[:, :, 0].astype(int) + round(turn_degrees / 2)) % 180
    return cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)


def retitled(front: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Another variant: the same print but for a title band and an emblem, which come from another packaging."""
    other = cv2.resize(other, front.shape[1::-1], interpolation=cv2.INTER_AREA)
    height = len(front)
    changed = front.copy()
    for top, bottom in ((0.05, 0.37), (0.45, 0.68)):
        rows = slice(round(top * height), round(bottom * height))
        changed[rows] = other[rows]
    return changed
