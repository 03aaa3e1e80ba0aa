"""The product map P: where the advertised product is, second by second.

RootSIFT (Arandjelovic & Zisserman 2012), ratio and mutual check, pose clusters (Lowe 2004, section 7.3), MAGSAC
homography (Barath et al. 2019), sanity gates, a comparison with the catalogue image, and the product's own outline
projected into the frame. Kernel code: numpy and OpenCV alone.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from scoring.catalogue_image import View, view_of
from scoring.colours import recoloured
from scoring.likeness import likeness, probability_of
from scoring.pose import Rejection, fit, hull_of_matches, implausible, out_of_size, projected
from scoring.product_index import ProductIndex
from scoring.settings import ProductConfig
from scoring.sift import Features, root_sift

COARSE_FEATURES = 600
CONFIDENT_INLIERS = 16
"""coarse matches with which a closer look would add nothing"""
CLOSE_LOOK_PX = 360
"""long side of the rectified picture that a closer look is taken at"""
CLOSE_LOOK_ZOOM = 1.5
"""its pixels for one of the frame's, at most"""
CLOSE_LOOK_ROOM = 0.15
"""round the product, of its diagonal, on every side"""
CLOSE_LOOK_MIN_PX = 24
CLOSE_LOOK_FEATURES = 800
MIRROR_EVERY = 2
"""a video without the product is looked at mirrored too, at first in every second frame: looking at all would cost a
sixth of the search there"""
SURE = 0.9
"""probability with which a second is believed that has no neighbour with the product"""
BESIDE_SURE = 0.05
"""probability that is enough in a second beside a sure one, where the same thing is in sight"""
COLOURS_PX = 112
THUMBNAIL_PX = 48
SAME_LEVELS = 3
"""grey levels by which thumbnails of the same picture may differ anywhere"""
MAX_COPIES = 8
"""of a product in one frame"""

__all__ = ["Detection", "ProductIndex", "Search", "View", "locate", "view_of"]


@dataclasses.dataclass(frozen=True)
class Detection:
    """The product in one frame, in fractions of the upright frame; parts may lie outside 0..1."""

    outline: np.ndarray
    """(K, 2) float32"""
    quad: np.ndarray
    """(4, 2) float32, the product's corners in its own order: clockwise from its own top left unless mirrored"""
    inliers: int
    """matches behind it"""
    probability: float | None
    """that it is the product and no look-alike; None with the method hull"""
    copies: tuple["Detection", ...] = ()
    """the product elsewhere in the same frame"""

    @property
    def everywhere(self) -> list["Detection"]:
        """This one, and the copies."""
        return [self, *self.copies]


@dataclasses.dataclass(frozen=True)
class _Sighting:
    view: View
    homography: np.ndarray
    """(3, 3) from the view's pixels to the working frame's"""
    inliers: int
    probability: float


def locate(
    frames: Iterable[np.ndarray],
    product: Sequence[View],
    config: ProductConfig | None = None,
    colours: Iterable[np.ndarray] | None = None,
) -> list[Detection | None]:
    """Look for a product in the frames of a video.

    frames: uint8 (H, W) grey or (H, W, 3) RGB, a sampled second each, any size. product: its views, as from
    ``ProductIndex``. colours: of grey frames the same in colour, one each, uint8 (h, w, 3) RGB, small, squashed or not;
    without them, products of the same print in other colours are taken for one another. Returns one entry a frame, in
    order: a Detection, or None where it was not found; of several copies in a frame that with most matches, and with it
    the others.
    """
    return Search(frames, config, colours).locate(product)


class Search:
    """The sampled frames of one video, whose features are computed once, however many products are looked for."""

    def __init__(
        self,
        frames: Iterable[np.ndarray],
        config: ProductConfig | None = None,
        colours: Iterable[np.ndarray] | None = None,
    ):
        """As of ``locate``."""
        self.config = config or ProductConfig()
        self.frames: list[_Frame] = []
        """a second that looks like the one before shares its frame"""
        uncoloured = colours is None
        for pixels, small in zip(frames, itertools.repeat(None) if uncoloured else colours, strict=not uncoloured):
            frame = _Frame(pixels, small, self.config)
            before = self.frames[-1] if self.frames else None
            self.frames.append(before if before is not None and before.looks_like(frame) else frame)
        self.rejections: collections.Counter[str] = collections.Counter()
        """how many looks of a frame at a view ended for which reason, see ``scoring.pose.Rejection``"""

    def locate(self, product: Sequence[View]) -> list[Detection | None]:
        """As the function of this name."""
        shots = [list(seconds) for _, seconds in itertools.groupby(self.frames, key=id)]
        found = self._located(product, [seconds[0] for seconds in shots])
        return [detection for detection, seconds in zip(found, shots, strict=True) for _ in seconds]

    def _located(self, product: Sequence[View], frames: Sequence["_Frame"]) -> list[Detection | None]:
        """As ``locate``, of frames that all differ from the one before: a still shot is no witness of itself."""
        if self.config.product_method == "hull":
            return [self._hull(frame, product) for frame in frames]
        sightings = self._sightings(product, frames)
        if not any(sightings):
            mirrored = [view.mirrored for view in product]
            if any(self._sightings(mirrored, frames[::MIRROR_EVERY])):
                product, sightings = mirrored, self._sightings(mirrored, frames)
        self._beside(sightings, frames)
        return [
            sighting and _detections([sighting, *self._copies(frame, product, sighting)], frame)
            for sighting, frame in zip(self._voted(sightings), frames, strict=True)
        ]

    def _sightings(self, product: Sequence[View], frames: Sequence["_Frame"]) -> list[_Sighting | None]:
        """Every frame on its own."""
        return [self._best(self._sought(frame, view, frame.features) for view in product) for frame in frames]

    def _best(self, looks: Iterable[_Sighting | Rejection]) -> _Sighting | None:
        """That with most matches; the others' reasons are counted."""
        seen = []
        for look in looks:
            if isinstance(look, Rejection):
                self.rejections[look] += 1
            else:
                seen.append(look)
        return max(seen, key=lambda sighting: sighting.inliers, default=None)

    def _copies(self, frame: "_Frame", product: Sequence[View], first: _Sighting) -> list[_Sighting]:
        """More of the product in a frame that shows it: where those found are not, and sure, as one of them has no
        neighbouring second to speak for it. Reasons are not counted: this frame has the product."""
        found, left = [first], frame.features
        while len(found) < MAX_COPIES:
            left = left.outside(projected(found[-1].view.outline, np.linalg.inv(frame.to_full) @ found[-1].homography))
            looks = [self._sought(frame, view, left, SURE) for view in product]
            sightings = [look for look in looks if not isinstance(look, Rejection)]
            copy = max(sightings, key=lambda sighting: sighting.inliers, default=None)
            if copy is None or any(_overlap(copy, other) for other in found):
                break
            found.append(copy)
        return found[1:]

    def _beside(self, sightings: list[_Sighting | None], frames: Sequence["_Frame"]) -> None:
        """A frame without the product is looked at again where it was in the frame before or after."""
        last = len(sightings) - 1
        for k, beside in [(k, k - 1) for k in range(1, last + 1)] + [(k, k + 1) for k in range(last - 1, -1, -1)]:
            neighbour = sightings[beside]
            if sightings[k] is None and neighbour is not None:
                least = BESIDE_SURE if neighbour.probability >= SURE else self.config.min_probability
                guess = frames[k], neighbour.view, neighbour.homography, least
                look = self._looked_closely(*guess)
                if isinstance(look, Rejection):
                    look = self._looked_closely(*guess, doubled=True)
                sightings[k] = self._best([look])

    def _voted(self, sightings: Sequence[_Sighting | None]) -> list[_Sighting | None]:
        """Without the frames that stand alone and are not sure."""
        if len(sightings) == 1:
            return list(sightings)
        around = [None, *sightings, None]
        voted = []
        for before, sighting, after in zip(around, sightings, around[2:], strict=False):
            alone = before is None and after is None
            if sighting is not None and alone and sighting.probability < SURE:
                self.rejections[Rejection.ALONE] += 1
                sighting = None
            voted.append(sighting)
        return voted

    def _sought(
        self, frame: "_Frame", view: View, features: Features, least: float | None = None
    ) -> _Sighting | Rejection:
        """Coarse to fine: the whole frame first, which decides most; where it leaves the matter open, a closer look
        where its matches point. features: of the coarse frame. least: probability; the configured one by default."""
        first = fit(features, view, self.config.match_ratio, self.config.min_inliers)
        if first.homography is None:
            return Rejection.FEW_MATCHES
        guess = frame.to_full @ first.homography
        if least is None:
            least = self.config.min_probability
        if first.inliers >= CONFIDENT_INLIERS:
            look = self._checked(frame, view, guess, first.inliers, least)
            if isinstance(look, _Sighting):
                return look
        return self._looked_closely(frame, view, guess, least)

    def _looked_closely(
        self, frame: "_Frame", view: View, guess: np.ndarray, least: float, doubled: bool = False
    ) -> _Sighting | Rejection:
        """Look where ``guess`` has the product, in a picture that shows it straight from the front.

        doubled: with the finest features too, which print behind glare or an overlay still has.
        """
        rectified = _rectified(frame, view, guess)
        if rectified is None:
            return Rejection.AREA
        picture, to_frame = rectified
        features = root_sift(picture, doubled=doubled, most=CLOSE_LOOK_FEATURES)
        second = fit(features, view, self.config.match_ratio, self.config.min_inliers)
        if second.homography is None or second.rejection is not None:
            return second.rejection or Rejection.NO_HOMOGRAPHY
        return self._checked(frame, view, to_frame @ second.homography, second.inliers, least)

    def _checked(
        self, frame: "_Frame", view: View, homography: np.ndarray, inliers: int, least: float
    ) -> _Sighting | Rejection:
        """A sighting, unless it cannot be or is the product with less than this probability."""
        rejection = implausible(homography, view)
        if rejection is None and out_of_size(projected(view.corners, homography), frame.gray.shape):
            rejection = Rejection.AREA
        probability = 0.0 if rejection else probability_of(likeness(frame.gray, view, homography))
        if rejection is None and probability < least:
            rejection = Rejection.UNLIKE
        size = frame.gray.shape[::-1]
        if rejection is None and frame.colours is not None and recoloured(frame.colours, view, homography, size):
            rejection = Rejection.OTHER_COLOURS
        return rejection or _Sighting(view, homography, inliers, probability)

    def _hull(self, frame: "_Frame", product: Sequence[View]) -> Detection | None:
        hulls = [hull_of_matches(frame.features, view) for view in product]
        outline, matches = max(hulls, key=lambda hull: hull[1])
        if outline is None:
            self.rejections[Rejection.FEW_MATCHES] += 1
            return None
        outline = projected(outline, frame.to_full) / frame.size
        return Detection(outline, cv2.boxPoints(cv2.minAreaRect(outline)), matches, None)


class _Frame:
    """A frame at the working size, and the features of its coarse copy."""

    def __init__(self, pixels: np.ndarray, colours: np.ndarray | None, config: ProductConfig):
        if colours is None and pixels.ndim == 3:
            colours = cv2.resize(pixels, (COLOURS_PX, COLOURS_PX), interpolation=cv2.INTER_AREA)
        self.colours = colours
        gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        self.gray = _shrunk(gray, config.working_short_side)
        self.coarse = _shrunk(self.gray, config.coarse_short_side)
        self.thumbnail = _shrunk(self.coarse, THUMBNAIL_PX)
        self.size = np.array(self.gray.shape[::-1], np.float32)
        across, down = self.size / self.coarse.shape[::-1]
        self.to_full = np.diag([across, down, 1.0])
        self._features: Features | None = None

    @property
    def features(self) -> Features:
        if self._features is None:
            self._features = root_sift(self.coarse, most=COARSE_FEATURES)
        return self._features

    def looks_like(self, other: "_Frame") -> bool:
        """Does nothing differ that could move an outline by a pixel?"""
        if self.gray.shape != other.gray.shape:
            return False
        return cv2.norm(self.thumbnail, other.thumbnail, cv2.NORM_INF) <= SAME_LEVELS


def _shrunk(gray: np.ndarray, short_side: int) -> np.ndarray:
    scale = short_side / min(gray.shape)
    if scale >= 1:
        return gray
    # above a half, averaging costs five times as much as interpolation and changes little
    how = cv2.INTER_AREA if scale <= 0.5 else cv2.INTER_LINEAR
    return cv2.resize(gray, None, fx=scale, fy=scale, interpolation=how)


def _rectified(frame: _Frame, view: View, homography: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """A picture of the product as from the front, and the (3, 3) map from it to the frame; None where too small."""
    quad = projected(view.corners, homography)
    low, high = view.corners.min(axis=0), view.corners.max(axis=0)
    room = CLOSE_LOOK_ROOM * np.linalg.norm(high - low)
    low, extent = low - room, high - low + 2 * room
    zoom = np.sqrt(cv2.contourArea(quad) / cv2.contourArea(view.corners))
    scale = min(CLOSE_LOOK_ZOOM * zoom, CLOSE_LOOK_PX / extent.max())
    size = (round(float(extent[0] * scale)), round(float(extent[1] * scale)))
    if min(size) < CLOSE_LOOK_MIN_PX:
        return None
    to_frame = homography @ np.array([[1 / scale, 0, low[0]], [0, 1 / scale, low[1]], [0, 0, 1]])
    picture = cv2.warpPerspective(frame.gray, to_frame, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return picture, to_frame


def _overlap(a: _Sighting, b: _Sighting) -> bool:
    """Does the centre of one lie within the other?"""
    quads = [projected(s.view.corners, s.homography) for s in (a, b)]
    return any(
        cv2.pointPolygonTest(quad, other.mean(axis=0).tolist(), False) >= 0
        for quad, other in itertools.permutations(quads)
    )


def _detections(sightings: Sequence[_Sighting], frame: _Frame) -> Detection:
    """The first of them, the others as its copies."""
    first, *copies = [
        Detection(
            projected(s.view.outline, s.homography) / frame.size,
            projected(s.view.corners, s.homography) / frame.size,
            s.inliers,
            s.probability,
        )
        for s in sightings
    ]
    return dataclasses.replace(first, copies=tuple(copies))
