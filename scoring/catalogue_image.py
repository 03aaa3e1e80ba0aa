"""A product's catalogue image made ready for the search: its features, and its outline in the photo.

Kernel code: numpy and OpenCV alone.
"""

import dataclasses
import functools
from collections.abc import Sequence

import cv2
import numpy as np

from scoring.sift import Features, root_sift

REFERENCE_LONG_SIDE_PX = 640
COLOURS_LONG_SIDE_PX = 64
MIN_REFERENCE_FEATURES = 16
WITH_ALPHA_UPRIGHT = cv2.IMREAD_UNCHANGED & ~cv2.IMREAD_IGNORE_ORIENTATION & ~cv2.IMREAD_COLOR_RGB
PLAIN_BACKGROUND_STD = 6.0
LETTERS_APART_PX = 13
"""at most, in one line of print"""
SPECK_SHARE = 0.0005
"""of the image; foreground that is smaller is dust"""
DESCRIPTOR_LEVELS = 255
"""to which descriptors of catalogue images are rounded: a quarter of the bytes when stored"""


@dataclasses.dataclass(frozen=True)
class View:
    """One catalogue image of a product, ready to be matched."""

    features: Features
    outline: np.ndarray
    """(K, 2) float32, the product's outline in the image, pixels"""
    corners: np.ndarray
    """(4, 2) float32, the smallest rectangle round the outline, clockwise from the top left"""
    picture: np.ndarray
    """uint8 (H, W), what the features were taken from"""
    colours: np.ndarray | None
    """uint8 (h, w, 3) RGB, the same small; None where the image is grey"""

    @property
    def nbytes(self) -> int:
        """In memory, with the mirrored one."""
        features = (self.features.points, self.features.sizes, self.features.angles, self.features.descriptors)
        return 2 * sum(array.nbytes for array in (*features, self.picture))

    @functools.cached_property
    def mirrored(self) -> "View":
        """The product as mirrored footage shows it; the corners keep their order."""
        last = self.picture.shape[1] - 1

        def turned(points: np.ndarray) -> np.ndarray:
            return np.column_stack([last - points[:, 0], points[:, 1]]).astype(np.float32)

        features, picture = self.features.mirrored(last), np.ascontiguousarray(self.picture[:, ::-1])
        colours = None if self.colours is None else np.ascontiguousarray(self.colours[:, ::-1])
        return View(features, turned(self.outline), turned(self.corners), picture, colours)


def view_of(image: bytes, outline: Sequence[float] | None = None) -> View:
    """Features of one catalogue image. Raises ValueError where it cannot be read or has nothing to match.

    outline: in the pixels of the upright image (EXIF orientation applied).
    """
    pixels = _decoded(image)
    height, width = pixels.shape[:2]
    scale = min(1.0, REFERENCE_LONG_SIDE_PX / max(height, width))
    if scale * min(height, width) < 1:
        raise ValueError(f"is too narrow, {width} x {height} px; replace it by a photo of the product")
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    gray, mask = _on_grey(pixels)
    if outline is None:
        polygon = _foreground_hull(mask)
    else:
        polygon = np.asarray(outline, dtype=np.float32).reshape(-1, 2) * scale
        mask = cv2.fillPoly(np.zeros_like(gray), [np.round(polygon).astype(np.int32)], 255)
    features = root_sift(gray, cv2.dilate(mask, np.ones((5, 5), np.uint8)))
    if len(features) < MIN_REFERENCE_FEATURES:
        where, remedy = "", "replace it by a sharp photo that shows the packaging's print"
        if outline is not None:
            where = " within its outline"
            remedy = f"check the outline, in pixels of the upright {width} x {height} image, or {remedy}"
        raise ValueError(
            f"has only {len(features)} features to match{where}, at least {MIN_REFERENCE_FEATURES} are needed; {remedy}"
        )
    descriptors = np.round(features.descriptors * DESCRIPTOR_LEVELS) / np.float32(DESCRIPTOR_LEVELS)
    return View(
        dataclasses.replace(features, descriptors=descriptors), polygon, _corners(polygon), gray, _small_colours(pixels)
    )


def _decoded(image: bytes) -> np.ndarray:
    """uint8 (H, W) grey or (H, W, 3 or 4) BGR, upright. Raises ValueError where it cannot be read."""
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), WITH_ALPHA_UPRIGHT) if image else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" not in error.err:
            raise
        raise ValueError("is too large: at most 2^30 pixels, and 2^20 a side, can be read") from error
    if pixels is None:
        raise ValueError("is not an image that can be read")
    if pixels.dtype == np.uint8:
        return pixels
    has_alpha = pixels.shape[2:] == (4,)
    colour = np.ascontiguousarray(pixels[:, :, :3]) if has_alpha else pixels
    colour = cv2.normalize(colour, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # pyright: ignore
    if not has_alpha:
        return colour
    alpha = cv2.normalize(pixels[:, :, 3], None, 255, 0, cv2.NORM_INF, cv2.CV_8U)  # pyright: ignore
    return np.dstack([colour, alpha])


def _small_colours(pixels: np.ndarray) -> np.ndarray | None:
    if pixels.ndim == 2:
        return None
    scale = COLOURS_LONG_SIDE_PX / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    small = cv2.resize(pixels[:, :, :3], size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)


def _on_grey(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey image and foreground mask (uint8 0/255): not transparent, and not a plain background."""
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    colour = pixels[:, :, :3]
    mask = np.full(colour.shape[:2], 255, np.uint8)
    if pixels.shape[2] == 4 and (pixels[:, :, 3] < 128).any():
        mask = np.where(pixels[:, :, 3] >= 128, 255, 0).astype(np.uint8)
        colour = np.where(mask[:, :, None] > 0, colour, 255).astype(np.uint8)
    else:
        border = np.concatenate([colour[0], colour[-1], colour[:, 0], colour[:, -1]]).astype(np.int16)
        plain = np.median(border, axis=0)
        if (np.abs(border - plain).max(axis=1) < 3 * PLAIN_BACKGROUND_STD).mean() > 0.97:
            difference = np.abs(colour.astype(np.int16) - plain).max(axis=2)
            mask = np.where(difference > 3 * PLAIN_BACKGROUND_STD, 255, 0).astype(np.uint8)
    return cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY), mask


def _foreground_hull(mask: np.ndarray) -> np.ndarray:
    """(K, 2) convex outline of all that is foreground, less specks; the whole image where nothing is.

    Small parts too: of white packaging on white only the print can be told from the background.
    """
    solid = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    lines = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, np.ones((LETTERS_APART_PX, LETTERS_APART_PX), np.uint8))
    _, part, stats, _ = cv2.connectedComponentsWithStats(lines)
    specks = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < SPECK_SHARE * mask.size)
    points = cv2.findNonZero(np.where(np.isin(part, specks), 0, solid))
    if points is None:
        height, width = mask.shape
        return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    hull = cv2.convexHull(points)
    return cv2.approxPolyDP(hull, 1.0, True)[:, 0].astype(np.float32)


def _corners(outline: np.ndarray) -> np.ndarray:
    """The smallest rectangle round an outline, clockwise from the corner nearest to the top left."""
    box = cv2.boxPoints(cv2.minAreaRect(outline.astype(np.float32)))
    if cv2.contourArea(box, oriented=True) < 0:
        box = box[::-1]
    return np.roll(box, -int(box.sum(axis=1).argmin()), axis=0).astype(np.float32)
