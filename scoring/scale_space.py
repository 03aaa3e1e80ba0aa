"""Keypoints of an image: extrema of differences of Gaussians over position and scale (Lowe 2004, sections 3-4).

Kernel code: numpy and OpenCV alone.
"""

import dataclasses
import functools

import cv2
import numpy as np

SIGMA_PX = 1.6
"""blur of an octave's first layer"""
LAYERS = 3
"""scales per octave"""
CAMERA_BLUR_PX = 0.5
"""what a picture is taken to have"""
MIN_OCTAVE_PX = 24
CONTRAST = 0.025 / LAYERS * 255
PEAK_CONTRAST = 0.8
"""of what a keypoint must have, that the pixel nearest to it must have"""
EDGE_RATIO = 10.0
UNITS_A_LEVEL = 4.0
BORDER_PX = 2
BLUR_REACH = 2.5
_CUBE = np.ones((3, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Keypoints:
    """N places with a scale, sorted by octave and layer; positions and scales in pixels of their octave."""

    octave: np.ndarray
    """(N,) int, into the octaves"""
    layer: np.ndarray
    """(N,) int, of the octave's layers the one with the nearest blur"""
    points: np.ndarray
    """(N, 2) float32, x, y"""
    sigmas: np.ndarray
    """(N,) float32"""
    contrasts: np.ndarray
    """(N,) float32, grey levels"""

    def __len__(self) -> int:
        return len(self.octave)

    def __getitem__(self, chosen: np.ndarray) -> "Keypoints":
        return Keypoints(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def octaves_of(gray: np.ndarray, doubled: bool) -> list[np.ndarray]:
    """Gaussian pyramid of a uint8 (H, W) image: an octave each float32 (LAYERS + 3, h, w), h and w halving.

    doubled: the first octave at twice the image's size: four times the cost.
    """
    first, blur_px = gray.astype(np.float32), CAMERA_BLUR_PX
    if doubled:
        first, blur_px = cv2.resize(first, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR), 2 * blur_px
    first = _blurred(first, np.sqrt(SIGMA_PX**2 - blur_px**2))
    octaves = []
    while min(first.shape) >= MIN_OCTAVE_PX:
        octave = np.empty((LAYERS + 3, *first.shape), np.float32)
        octave[0] = first
        for layer, step in enumerate(_steps_px(), start=1):
            _blurred(octave[layer - 1], step, octave[layer])
        octaves.append(octave)
        first = np.ascontiguousarray(octave[LAYERS, ::2, ::2])
    return octaves


@functools.cache
def _steps_px() -> list[float]:
    """What each layer is blurred with to make the next."""
    blurs = SIGMA_PX * 2.0 ** (np.arange(LAYERS + 3) / LAYERS)
    return np.sqrt(blurs[1:] ** 2 - blurs[:-1] ** 2).tolist()


def _blurred(pixels: np.ndarray, sigma_px: float, out: np.ndarray | None = None) -> np.ndarray:
    side = 2 * int(np.ceil(BLUR_REACH * sigma_px)) + 1
    return cv2.GaussianBlur(pixels, (side, side), sigma_px, dst=out)


def keypoints_of(octaves: list[np.ndarray], mask: np.ndarray | None, most: int) -> Keypoints:
    """The ``most`` keypoints of highest contrast where ``mask`` (uint8, any size, laid over the image) is not 0."""
    found = [_extrema(octave, mask) for octave in octaves]
    if not found:
        return Keypoints(*(np.empty(shape, np.float32) for shape in (0, 0, (0, 2), 0, 0)))
    octave = np.repeat(np.arange(len(found)), [len(at) for at, _ in found])
    at, dog = (np.concatenate(parts) for parts in zip(*found, strict=True))
    offset, contrast, keep = _refined(dog)
    octave, layer, contrast = octave[keep], at[keep, 0], contrast[keep]
    exactly = (at[keep] + offset[keep]).astype(np.float32)
    keypoints = Keypoints(octave, layer, exactly[:, :0:-1], SIGMA_PX * 2 ** (exactly[:, 0] / LAYERS), contrast)
    if len(keypoints) > most:
        keypoints = keypoints[np.sort(np.argpartition(-keypoints.contrasts, most)[:most])]
    return keypoints


def _extrema(octave: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) layer, y, x where the difference of Gaussians is largest among its 26 neighbours, and those (N, 3, 3, 3).

    Largest in magnitude: neighbours of the other sign are never as large, an octave is too smooth for that.
    """
    layers, height, width = octave.shape
    # whole numbers are four times as fast to compare; ties that they make are undone below
    size = [
        cv2.convertScaleAbs(cv2.subtract(octave[layer + 1], octave[layer]), alpha=UNITS_A_LEVEL)
        for layer in range(layers - 1)
    ]
    if mask is not None:
        mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    places = []
    for layer in range(1, LAYERS + 1):
        largest = cv2.max(cv2.max(size[layer - 1], size[layer]), size[layer + 1])
        largest = cv2.max(cv2.dilate(largest, _CUBE), UNITS_A_LEVEL * PEAK_CONTRAST * CONTRAST)  # pyright: ignore
        is_extremum = cv2.compare(size[layer], largest, cv2.CMP_GE)
        if mask is not None:
            is_extremum = cv2.bitwise_and(is_extremum, mask)
        for edge in (slice(BORDER_PX), slice(-BORDER_PX, None)):
            is_extremum[edge] = is_extremum[:, edge] = 0
        places.append(np.flatnonzero(is_extremum.view(bool)) + layer * height * width)
    place = np.concatenate(places)
    aside = np.arange(-1, 2)
    cube = (np.arange(-1, 3)[:, None, None] * height + aside[:, None]) * width + aside
    blurs = octave.ravel()[place[:, None, None, None] + cube]
    dog = np.diff(blurs, axis=1)
    truly = np.abs(dog).reshape(-1, 27).max(axis=1) == np.abs(dog[:, 1, 1, 1])
    layer, within = np.divmod(place[truly], height * width)
    return np.column_stack([layer, *np.divmod(within, width)]), dog[truly]


def _refined(dog: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The extremum of the parabola through each (3, 3, 3) neighbourhood (Lowe 2004, equation 3).

    Returns its offset (N, 3) in layers and pixels, its contrast (N,), and which are neither faint nor on an edge (N,).
    """
    centre = dog[:, 1, 1, 1]
    below, above = (dog[:, (i, 1, 1), (1, i, 1), (1, 1, i)] for i in (0, 2))
    gradient = (above - below) / 2
    ss, yy, xx = (above + below - 2 * centre[:, None]).T
    sy, sx, yx = (
        (plane[:, 2, 2] - plane[:, 2, 0] - plane[:, 0, 2] + plane[:, 0, 0]) / 4
        for plane in (dog[:, :, :, 1], dog[:, :, 1], dog[:, 1])
    )
    # the inverse of the symmetric Hessian by its adjugate: faster than LAPACK on many small ones
    corner, edges = ss * yy - sy * sy, (sx * yx - sy * xx, sy * yx - sx * yy, sx * sy - ss * yx)
    adjugate = np.stack([yy * xx - yx * yx, *edges, ss * xx - sx * sx, corner])[[[0, 1, 2], [1, 4, 3], [2, 3, 5]]]
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = ss * adjugate[0, 0] + sy * adjugate[0, 1] + sx * adjugate[0, 2]
        offset = -np.einsum("ijn,nj->ni", adjugate, gradient) / determinant[:, None]
        contrast = np.abs(centre + 0.5 * (gradient * offset).sum(axis=1))
        keep = (np.abs(offset) < 1).all(axis=1) & (contrast >= CONTRAST)
    curvature = yy * xx - yx**2
    keep &= (curvature > 0) & ((xx + yy) ** 2 * EDGE_RATIO < (EDGE_RATIO + 1) ** 2 * curvature)
    return offset, contrast, keep
