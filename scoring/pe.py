"""The PE-score: how much of a video's engagement lands on its product (Yang, Zhang & Zhang 2025).

    PE = mean over all pixels and seconds of E * P

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

SUPERSAMPLING = 8


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


def pe_scores(E: np.ndarray, P: np.ndarray | None) -> PEScores:  # noqa: N803  (the paper's symbols)
    """Scores of one video.

    E: float (S, H, W), unscaled, >= 0. P: bool or 0/1 (S, H, W), or None where the video has no product.
    ``pe_score``, ``e_score`` and ``e_on_product`` use E min-max scaled over the video, ``*_raw`` use E as it is.
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


def min_max_scaled(E: np.ndarray) -> np.ndarray:  # noqa: N803
    """E scaled to [0, 1] over the whole video; a constant E (nothing stands out) is 0 everywhere."""
    low, high = E.min(), E.max()
    if high <= low:
        return np.zeros_like(E, dtype=np.float32)
    return ((E - low) / (high - low)).astype(np.float32)


def rasterised(outlines: Sequence[np.ndarray | None], height: int, width: int) -> np.ndarray:
    """P on E's grid: a cell is product where the outline covers at least half of it.

    outlines: a second each, (K, 2) x, y in fractions of the upright frame (parts beyond 0..1 are cut off), or
    None for a second without the product -> bool (S, height, width).
    """
    grid = np.zeros((len(outlines), height, width), dtype=bool)
    scale = np.array([width, height], dtype=np.float64) * SUPERSAMPLING
    for second, outline in enumerate(outlines):
        if outline is None:
            continue
        corners = np.asarray(outline, dtype=np.float64).reshape(-1, 2)
        fine = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), dtype=np.uint8)
        # pixel centres lie at +0.5; 4 fractional bits keep the edges where they are
        points = np.clip(np.round((corners * scale - 0.5) * 16), -(2**28), 2**28).astype(np.int32)
        cv2.fillPoly(fine, [points], 255, shift=4)
        grid[second] = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) >= 128
    return grid
