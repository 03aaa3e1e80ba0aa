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
from scoring.catalogue_image import View, view_of
from scoring.settings import ProductConfig
from scoring.sift import Features, mutual_matches, root_sift

COARSE_SCALE = 0.5
MIN_COARSE_SHORT_SIDE_PX = 120
CONFIDENT_INLIERS = 16
"""coarse matches with which a fine look would add nothing"""
MIN_EVIDENCE = 4
"""coarse matches that must agree for a fine look"""
REGION_ROOM = 0.2
"""round the place where coarse matches have the product, of its diagonal, on every side"""
NEIGHBOUR_ROOM = 0.5
"""the same round its place a second before or after"""
MIN_REGION_PX = 32
POSE_TURN_DEGREES = 25.0
POSE_ZOOM_OCTAVES = 0.6
POSE_SHIFT_SHARE = 0.25
"""of the product's diagonal"""
REPROJECTION_PX = 4.0
MIN_SHARE_OF_FRAME = 0.002
MAX_ASPECT_DISTORTION = 4.0
MIN_INLIER_SPREAD = 0.12


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
            except (ValueError, cv2.error) as error:
                if getattr(error, "code", None) == cv2.Error.STS_NO_MEM:
                    raise
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


def locate(
    frames: Iterable[np.ndarray], product: Sequence[View], config: ProductConfig | None = None
) -> list[Detection | None]:
    """Look for a product in the frames of a video.

    frames: uint8 (H, W) grey or (H, W, 3) RGB, a sampled second each, any size. product: its views, as from
    ``ProductIndex``. Returns one entry a frame, in order: a Detection, or None where it was not found.

    Every frame is searched on its own; then a second without the product is looked at again where it was found in
    the second before or after.
    """
    config = config or ProductConfig()
    grays = [_working_gray(frame, config) for frame in frames]
    found = [_searched(gray, product, config) for gray in grays]
    last = len(grays) - 1
    for k, beside in [(k, k - 1) for k in range(1, last + 1)] + [(k, k + 1) for k in range(last - 1, -1, -1)]:
        neighbour = found[beside]
        if found[k] is None and neighbour is not None:
            found[k] = _best(_looked_at(grays[k], product, config, neighbour.quad, NEIGHBOUR_ROOM)[0])
    return found


def locate_in_frame(frame: np.ndarray, product: Sequence[View], config: ProductConfig) -> Detection | None:
    """The best detection over the product's views in one frame on its own, or None."""
    return _searched(_working_gray(frame, config), product, config)


def _working_gray(frame: np.ndarray, config: ProductConfig) -> np.ndarray:
    gray = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return _shrunk(gray, config.working_short_side / min(gray.shape))


def _searched(gray: np.ndarray, product: Sequence[View], config: ProductConfig) -> Detection | None:
    """Coarse to fine: the whole frame at COARSE_SCALE first, which decides most frames; where it leaves the matter
    open, the working resolution, only where the coarse matches point."""
    if min(gray.shape) * COARSE_SCALE < MIN_COARSE_SHORT_SIDE_PX:
        return _best(_looked_at(gray, product, config)[0])
    found, places = _looked_at(_shrunk(gray, COARSE_SCALE), product, config)
    if not any(d.inliers >= CONFIDENT_INLIERS for d in found):
        for place in places:
            found += _looked_at(gray, product, config, place)[0]
    return _best(found)


def _looked_at(
    gray: np.ndarray,
    product: Sequence[View],
    config: ProductConfig,
    place: np.ndarray | None = None,
    room: float = REGION_ROOM,
) -> tuple[list[Detection], list[np.ndarray]]:
    """Detections, and (4, 2) quads (fractions of the frame) that deserve a closer look.

    place: look only round this quad, with ``room`` on every side; None: everywhere.
    """
    left, top, right, bottom = _region(place, room, gray.shape)
    if min(right - left, bottom - top) < MIN_REGION_PX:
        return [], []
    features = root_sift(gray[top:bottom, left:right])
    features = dataclasses.replace(features, points=features.points + np.array([left, top], np.float32))
    matched = [match(features, gray.shape, view, config) for view in product]
    return [d for d, _ in matched if d is not None], [place for _, place in matched if place is not None]


def _best(found: Sequence[Detection]) -> Detection | None:
    return max(found, key=lambda d: d.inliers, default=None)


def _shrunk(gray: np.ndarray, scale: float) -> np.ndarray:
    return cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray


def _region(place: np.ndarray | None, room: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """left, top, right, bottom in pixels."""
    height, width = shape[:2]
    if place is None:
        return 0, 0, width, height
    quad = place * np.array([width, height])
    margin = room * np.linalg.norm(np.ptp(quad, axis=0))
    (left, top), (right, bottom) = quad.min(axis=0) - margin, quad.max(axis=0) + margin
    return max(0, int(left)), max(0, int(top)), min(width, int(right) + 1), min(height, int(bottom) + 1)


def match(
    frame: Features, shape: tuple[int, ...], view: View, config: ProductConfig
) -> tuple[Detection | None, np.ndarray | None]:
    """One frame's features against one view. shape: the frame's (H, W), pixels.

    Returns the detection, and where the matches that agree best would have the product: its corners (4, 2) in
    fractions of the frame, None where too few agree.
    """
    size = np.array([shape[1], shape[0]], dtype=np.float32)
    in_frame, in_view = mutual_matches(frame.descriptors, view.features.descriptors, config.match_ratio)
    poses = _poses(frame, in_frame, view, in_view)
    cluster = _largest_cluster(poses, view)
    if cluster.sum() < MIN_EVIDENCE:
        return None, None
    hint = _posed_corners(poses[cluster], view) / size
    in_frame, in_view = in_frame[cluster], in_view[cluster]
    if len(in_frame) < config.min_inliers:
        return None, hint
    source, target = view.features.points[in_view], frame.points[in_frame]
    homography, inlying = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, REPROJECTION_PX, maxIters=2000, confidence=0.999
    )
    if homography is None:
        return None, hint
    inlying = inlying.ravel().astype(bool)
    inliers = int(inlying.sum())
    if inliers < config.min_inliers or not _is_plausible(homography, view, source[inlying], shape):
        return None, hint
    outline, quad = _projected(view.outline, homography), _projected(view.corners, homography)
    return Detection(outline / size, quad / size, inliers), quad / size


def _poses(frame: Features, in_frame: np.ndarray, view: View, in_view: np.ndarray) -> np.ndarray:
    """(N, 4): the turn (degrees), zoom and centre x, y (pixels) of the product that each match alone implies."""
    turn = frame.angles[in_frame] - view.features.angles[in_view]
    zoom = frame.sizes[in_frame] / view.features.sizes[in_view]
    to_centre = view.corners.mean(axis=0) - view.features.points[in_view]
    centre = frame.points[in_frame] + zoom[:, None] * _turned(to_centre, turn)
    return np.column_stack([turn, zoom, centre])


def _largest_cluster(poses: np.ndarray, view: View) -> np.ndarray:
    """Mask of the matches that agree with one another about the product's turn, size and centre.

    False matches imply poses all over the frame, so that a loose ratio test can be used where the true ones
    must agree.
    """
    if not len(poses):
        return np.empty(0, bool)
    turn, zoom, centre = poses[:, 0], poses[:, 1], poses[:, 2:]
    diagonal = np.linalg.norm(view.corners[2] - view.corners[0])
    apart = np.linalg.norm(centre[:, None] - centre[None], axis=2)
    agree = (
        (np.abs((turn[:, None] - turn[None] + 180) % 360 - 180) < POSE_TURN_DEGREES)
        & (np.abs(np.log2(zoom[:, None] / zoom[None])) < POSE_ZOOM_OCTAVES)
        & (apart < POSE_SHIFT_SHARE * diagonal * np.minimum(zoom[:, None], zoom[None]))
    )
    return agree[agree.sum(axis=1).argmax()]


def _posed_corners(poses: np.ndarray, view: View) -> np.ndarray:
    """(4, 2) the product's corners in the frame by the median of these poses, pixels."""
    turn = poses[0, 0] + np.median((poses[:, 0] - poses[0, 0] + 180) % 360 - 180)
    around = view.corners - view.corners.mean(axis=0)
    centre = np.median(poses[:, 2:], axis=0)
    return centre + np.median(poses[:, 1]) * _turned(around, np.full(4, turn))


def _turned(vectors: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """(N, 2) vectors, each turned by its own angle, clockwise as pictures are seen."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x, y = vectors.T
    return np.column_stack([cos * x - sin * y, sin * x + cos * y])


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
