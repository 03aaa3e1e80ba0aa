"""The product map P: where the advertised product is, second by second.

RootSIFT (Arandjelovic & Zisserman 2012), ratio and mutual check, pose clusters (Lowe 2004, section 7.3), MAGSAC
homography (Barath et al. 2019), sanity gates, and the product's own outline projected into the frame.
Kernel code: numpy and OpenCV alone.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from catalog.errors import ErrorCode, Stage, VideoError


@dataclasses.dataclass(frozen=True)
class ProductConfig:
    """How a product is looked for."""

    working_short_side: int = 360
    """short side to which frames are reduced before the search, pixels; smaller frames stay as they are"""
    match_ratio: float = 0.9
    """Lowe's ratio: the best match must be this much closer than the second"""
    min_inliers: int = 7
    """matches that must agree with one homography"""


REFERENCE_LONG_SIDE_PX = 640
MIN_REFERENCE_FEATURES = 16
MAX_FEATURES = 3000
POSE_TURN_DEGREES = 25.0
POSE_ZOOM_OCTAVES = 0.6
POSE_SHIFT_SHARE = 0.25
"""of the product's diagonal"""
REPROJECTION_PX = 4.0
MIN_SHARE_OF_FRAME = 0.002
MAX_ASPECT_DISTORTION = 4.0
MIN_INLIER_SPREAD = 0.12
PLAIN_BACKGROUND_STD = 6.0


@dataclasses.dataclass(frozen=True)
class Features:
    """Local features of one image; N may be 0."""

    points: np.ndarray
    """(N, 2) float32, x, y, pixels"""
    sizes: np.ndarray
    """(N,) float32, diameter, pixels"""
    angles: np.ndarray
    """(N,) float32, degrees"""
    descriptors: np.ndarray
    """(N, 128) float32 RootSIFT, unit length"""

    def __len__(self) -> int:
        return len(self.points)


@dataclasses.dataclass(frozen=True)
class View:
    """One catalogue image of a product, ready to be matched."""

    features: "Features"
    outline: np.ndarray
    """(K, 2) float32, the product's outline in the image, pixels"""
    corners: np.ndarray
    """(4, 2) float32, the smallest rectangle round the outline, clockwise from the top left"""


@dataclasses.dataclass(frozen=True)
class Detection:
    """The product in one frame, in fractions of the upright frame; parts may lie outside 0..1."""

    outline: np.ndarray
    """(K, 2) float32"""
    quad: np.ndarray
    """(4, 2) float32, the product's corners, clockwise from its own top left"""
    inliers: int


class ProductIndex:
    """Features of the products' catalogue images, computed when a product is first asked for and kept.

    images: for a product_id, its images (bytes of any format OpenCV reads) and, an image each, its outline
    as x1, y1, x2, y2, ... in pixels or None. At most ``capacity`` products are kept.
    """

    def __init__(self, config: ProductConfig | None = None, capacity: int = 1000):
        self.config = config or ProductConfig()
        self.capacity = capacity
        self._views: dict[str, list[View]] = {}

    def __contains__(self, product_id: str) -> bool:
        return product_id in self._views

    def __getitem__(self, product_id: str) -> list[View]:
        return self._views[product_id]

    def add(self, product_id: str, images: Sequence[bytes], outlines: Sequence[Sequence[float] | None]) -> list[View]:
        """Raises VideoError bad_product_image where no image is usable; one usable image is enough."""
        views, problems = [], []
        for number, (image, outline) in enumerate(zip(images, outlines, strict=True), start=1):
            try:
                views.append(view_of(image, outline))
            except ValueError as error:
                problems.append(f"image {number}: {error}")
        if not views:
            raise VideoError(
                ErrorCode.BAD_PRODUCT_IMAGE,
                f"product {product_id} has no usable image; {'; '.join(problems)}",
                Stage.LOCATE,
            )
        if len(self._views) >= self.capacity:
            self._views.pop(next(iter(self._views)))
        self._views[product_id] = views
        return views


def view_of(image: bytes, outline: Sequence[float] | None = None) -> View:
    """Features of one catalogue image. Raises ValueError where it cannot be read or has nothing to match."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_UNCHANGED) if image else None
    if pixels is None:
        raise ValueError("is not an image that can be read")
    if pixels.dtype != np.uint8:
        pixels = cv2.normalize(pixels, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # pyright: ignore
    scale = min(1.0, REFERENCE_LONG_SIDE_PX / max(pixels.shape[:2]))
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
        raise ValueError(
            f"has only {len(features)} features to match, at least {MIN_REFERENCE_FEATURES} are needed; "
            "replace it by a sharp photo that shows the packaging's print"
        )
    return View(features, polygon, _corners(polygon))


def root_sift(gray: np.ndarray, mask: np.ndarray | None = None) -> Features:
    """Features of a uint8 (H, W) image, where ``mask`` (same shape) is not 0."""
    detector = cv2.SIFT_create(nfeatures=MAX_FEATURES)  # pyright: ignore
    keypoints, descriptors = detector.detectAndCompute(gray, mask)
    if descriptors is None:
        keypoints, descriptors = (), np.empty((0, 128), np.float32)
    descriptors /= np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-7)
    geometry = np.array([(*k.pt, k.size, k.angle) for k in keypoints], np.float32).reshape(-1, 4)
    return Features(geometry[:, :2], geometry[:, 2], geometry[:, 3], np.sqrt(descriptors))


def locate(frames: Iterable[np.ndarray], product: Sequence[View], config: ProductConfig | None = None) -> list[Detection | None]:
    """Look for a product in the frames of a video.

    frames: uint8 (H, W) grey or (H, W, 3) RGB, a sampled second each, any size. product: its views, as from
    ``ProductIndex``. Returns one entry a frame, in order: a Detection, or None where it was not found.
    """
    config = config or ProductConfig()
    return [locate_in_frame(frame, product, config) for frame in frames]


def locate_in_frame(frame: np.ndarray, product: Sequence[View], config: ProductConfig) -> Detection | None:
    """The best detection over the product's views in one frame, or None."""
    gray = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = config.working_short_side / min(gray.shape)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    features = root_sift(gray)
    found = (match(features, gray.shape[:2], view, config) for view in product)
    return max((d for d in found if d is not None), key=lambda d: d.inliers, default=None)


def match(frame: Features, shape: tuple[int, ...], view: View, config: ProductConfig) -> Detection | None:
    """One frame's features against one view. shape: the frame's (H, W), pixels."""
    in_frame, in_view = _mutual_matches(frame.descriptors, view.features.descriptors, config.match_ratio)
    cluster = _largest_pose_cluster(frame, in_frame, view, in_view)
    in_frame, in_view = in_frame[cluster], in_view[cluster]
    if len(in_frame) < config.min_inliers:
        return None
    source, target = view.features.points[in_view], frame.points[in_frame]
    homography, inlying = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, REPROJECTION_PX, maxIters=2000, confidence=0.999
    )
    if homography is None:
        return None
    inlying = inlying.ravel().astype(bool)
    inliers = int(inlying.sum())
    if inliers < config.min_inliers or not _is_plausible(homography, view, source[inlying], shape):
        return None
    size = np.array([shape[1], shape[0]], dtype=np.float32)
    outline, quad = _projected(view.outline, homography), _projected(view.corners, homography)
    return Detection(outline / size, quad / size, inliers)


def _mutual_matches(frame: np.ndarray, view: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs (into frame, into view) that pass the ratio test and are each other's best, best first."""
    if len(frame) < 2 or len(view) < 2:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    similarity = frame @ view.T
    rows = np.arange(len(frame))
    best = similarity.argmax(axis=1)
    rows = rows[similarity.argmax(axis=0)[best] == rows]
    best = best[rows]
    rest = similarity[rows]
    # unit vectors: squared distance = 2 - 2 * similarity
    distance = 1 - rest[np.arange(len(rows)), best]
    rest[np.arange(len(rows)), best] = -1
    keep = distance < ratio**2 * (1 - rest.max(axis=1))
    order = np.argsort(distance[keep], kind="stable")
    return rows[keep][order], best[keep][order]


def _largest_pose_cluster(frame: Features, in_frame: np.ndarray, view: View, in_view: np.ndarray) -> np.ndarray:
    """Mask of the matches that agree with one another about the product's turn, size and centre.

    Every match alone implies a pose, from the two features' angles and sizes. False matches imply poses all
    over the frame, so that a loose ratio test can be used where the true ones must agree.
    """
    if not len(in_frame):
        return np.empty(0, bool)
    turn = frame.angles[in_frame] - view.features.angles[in_view]
    zoom = frame.sizes[in_frame] / view.features.sizes[in_view]
    to_centre = view.corners.mean(axis=0) - view.features.points[in_view]
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    rotated = np.stack([cos * to_centre[:, 0] - sin * to_centre[:, 1], sin * to_centre[:, 0] + cos * to_centre[:, 1]])
    centre = frame.points[in_frame] + zoom[:, None] * rotated.T
    diagonal = np.linalg.norm(view.corners[2] - view.corners[0])
    apart = np.linalg.norm(centre[:, None] - centre[None], axis=2)
    agree = (
        (np.abs((turn[:, None] - turn[None] + 180) % 360 - 180) < POSE_TURN_DEGREES)
        & (np.abs(np.log2(zoom[:, None] / zoom[None])) < POSE_ZOOM_OCTAVES)
        & (apart < POSE_SHIFT_SHARE * diagonal * np.minimum(zoom[:, None], zoom[None]))
    )
    return agree[agree.sum(axis=1).argmax()]


def _is_plausible(homography: np.ndarray, view: View, inliers: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Does the homography show the product's front as a camera could see it?"""
    height, width = shape[:2]
    depth = np.c_[view.corners, np.ones(4)] @ homography[2]
    if (depth <= 0).any() if depth[0] > 0 else (depth >= 0).any():
        return False  # part of the product would lie behind the camera
    quad = _projected(view.corners, homography)
    if not cv2.isContourConvex(quad.astype(np.float32)):
        return False
    # same turning sense as in the catalogue image: not mirrored
    if cv2.contourArea(quad, oriented=True) * cv2.contourArea(view.corners, oriented=True) <= 0:
        return False
    area = cv2.contourArea(quad)
    if not MIN_SHARE_OF_FRAME * width * height <= area <= 4 * width * height:
        return False
    sides = np.linalg.norm(quad - np.roll(quad, -1, axis=0), axis=1)
    true_sides = np.linalg.norm(view.corners - np.roll(view.corners, -1, axis=0), axis=1)
    stretch = sides / np.maximum(true_sides, 1e-6)
    if stretch.min() <= 0 or stretch.max() / stretch.min() > MAX_ASPECT_DISTORTION:
        return False
    # all inliers in one small corner (a logo that many products share) do not show the whole product
    spread = np.sqrt(np.prod(inliers.std(axis=0) * np.sqrt(12)) / cv2.contourArea(view.corners))
    return bool(spread >= MIN_INLIER_SPREAD)


def _projected(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    return cv2.perspectiveTransform(points[None].astype(np.float32), homography)[0]


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
    """(K, 2) convex outline of the mask's solid parts; the whole image where there is none."""
    solid = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    contours, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    large = [c for c in contours if cv2.contourArea(c) >= 0.01 * mask.size]
    height, width = mask.shape
    if not large or all(cv2.contourArea(c) < 0.05 * mask.size for c in large):
        return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    hull = cv2.convexHull(np.concatenate(large))
    return cv2.approxPolyDP(hull, 1.0, True)[:, 0].astype(np.float32)


def _corners(outline: np.ndarray) -> np.ndarray:
    """The smallest rectangle round an outline, clockwise from the corner nearest to the top left."""
    box = cv2.boxPoints(cv2.minAreaRect(outline.astype(np.float32)))
    if cv2.contourArea(box, oriented=True) < 0:
        box = box[::-1]
    return np.roll(box, -int(box.sum(axis=1).argmin()), axis=0).astype(np.float32)
