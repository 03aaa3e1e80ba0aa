"""The PE-score: how much of a video's engagement lands on its product (Yang, Zhang & Zhang 2025).

    PE = mean over all pixels and seconds of E * P

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class PEScores:
    """All are means, so ``pe_score == e_on_product * p_score``; per-second lists average to the scores.

    Without a product map (P is None) everything that needs P is None.
    """

    pe_score: float | None
    e_score: float
    p_score: float | None
    pe_score_raw: float | None
    e_score_raw: float
    e_on_product: float | None
    pe_per_second: np.ndarray | None
    e_per_second: np.ndarray
    p_per_second: np.ndarray | None


def pe_scores(E: np.ndarray, P: np.ndarray | None) -> PEScores:
    """Scores of one video.

    E: float (S, H, W), unscaled, >= 0. P: bool or 0/1 (S, H, W), or None where the video has no product.
    ``pe_score``, ``e_score`` and ``e_on_product`` use E min-max scaled over the video, ``*_raw`` E as it is.
    Raises ValueError where the shapes differ or E holds values that are not finite.
    """
    if P is not None and P.shape != E.shape:
        raise ValueError(f"P is {P.shape}, E is {E.shape}: they must be on one grid")
    if not np.isfinite(E).all():
        raise ValueError("E holds values that are not finite")
    scaled = min_max_scaled(E)
    e_per_second = scaled.mean(axis=(1, 2), dtype=np.float64)
    if P is None:
        return PEScores(
            pe_score=None,
            e_score=float(e_per_second.mean()),
            p_score=None,
            pe_score_raw=None,
            e_score_raw=float(E.mean(dtype=np.float64)),
            e_on_product=None,
            pe_per_second=None,
            e_per_second=e_per_second,
            p_per_second=None,
        )
    on_product = P.astype(bool)
    pe_per_second = np.where(on_product, scaled, 0).mean(axis=(1, 2), dtype=np.float64)
    p_per_second = on_product.mean(axis=(1, 2), dtype=np.float64)
    p_score = float(p_per_second.mean())
    pe_score = float(pe_per_second.mean())
    return PEScores(
        pe_score=pe_score,
        e_score=float(e_per_second.mean()),
        p_score=p_score,
        pe_score_raw=float(np.where(on_product, E, 0).mean(dtype=np.float64)),
        e_score_raw=float(E.mean(dtype=np.float64)),
        e_on_product=pe_score / p_score if p_score > 0 else None,
        pe_per_second=pe_per_second,
        e_per_second=e_per_second,
        p_per_second=p_per_second,
    )


def min_max_scaled(E: np.ndarray) -> np.ndarray:
    """E scaled to [0, 1] over the whole video; a constant E (nothing stands out) is 0 everywhere."""
    low, high = E.min(), E.max()
    if high <= low:
        return np.zeros_like(E, dtype=np.float32)
    return ((E - low) / (high - low)).astype(np.float32)


def rasterised(outlines: Sequence[Iterable[np.ndarray]], height: int, width: int) -> np.ndarray:
    """P on E's grid: a cell is product where the product covers at least half of it.

    outlines: a second each, a polygon (K, 2) for every copy of the product that is seen: x, y in fractions of the
    upright frame, parts beyond 0..1 are cut off -> bool (S, height, width).
    """
    grid = np.zeros((len(outlines), height, width), dtype=bool)
    for second, polygons in enumerate(outlines):
        covered = sum(covered_share(polygon * np.array((width, height)), height, width) for polygon in polygons)
        grid[second] = covered >= 0.5 - 1e-6
    return grid


def covered_share(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which share of every cell a simple polygon covers, exactly: (K, 2) x, y in cells -> (height, width).

    Green's theorem, as font rasterisers use it: an edge covers all that lies to its right, upwards with the
    opposite sign of downwards, and within the cells that it crosses what its middle there leaves.
    """
    start, step = corners[:, None], (np.roll(corners, -1, axis=0) - corners)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = [(np.arange(n + 1) - start[:, :, k]) / step[:, :, k] for k, n in enumerate((width, height))]
    ends = np.broadcast_to((0.0, 1.0), (len(corners), 2))
    at = np.sort(np.clip(np.nan_to_num(np.concatenate([ends, *crossings], axis=1)), 0, 1), axis=1)
    points = np.clip(start + at[:, :, None] * step, 0, (width, height))
    middle, down = (points[:, 1:] + points[:, :-1]) / 2, np.diff(points[:, :, 1], axis=1)
    column = np.minimum(middle[:, :, 0].astype(np.intp), width)
    row = np.minimum(middle[:, :, 1].astype(np.intp), height - 1)
    beyond = down * (middle[:, :, 0] - column)
    cell = row * (width + 2) + column
    change = np.bincount(
        np.concatenate([cell.ravel(), cell.ravel() + 1]),
        np.concatenate([(down - beyond).ravel(), beyond.ravel()]),
        minlength=height * (width + 2),
    )
    return np.abs(change.reshape(height, width + 2).cumsum(axis=1)[:, :width])
