"""Scores that cannot be about the product: were they to predict lifts as PE does, PE would say nothing.

Kernel code: imports neither Ray nor MLflow.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.sample import Sample
from analysis.stage_two import huber
from scoring.pe import rasterised

GRID = 56
"""Cells a side on which E and P are laid over one another."""
SHIFTED, OTHER, RANDOM = "P half a video later", "P of another video's product", "PE by a model of other weights"
PRODUCTS = ("E", "P", "ExP")


def mistaken_scores(videos: pd.DataFrame, maps: Iterable[tuple[str, np.ndarray]], seed: int) -> pd.DataFrame:
    """(n,) PE with the video's own E and a P that is not its product's, less the pixels and seconds where its product
    is: one that stays where it is has the same P half a video later, and catalogues show their products in like places.

    videos: scores with e_per_second and product_quads. maps: video id and E (S, H, W) scaled to 0..1; a video without
    one has E's mean in each second everywhere.
    """
    masks = [
        rasterised([np.reshape(() if quads is None else quads, (-1, 4, 2)) for quads in seconds], GRID, GRID)
        for seconds in videos["product_quads"]
    ]
    step = 1 + int(np.random.default_rng(seed).integers(len(videos) - 1))

    def mistaken(i: int, E: np.ndarray) -> list[float]:
        own, other = masks[i], masks[(i + step) % len(masks)]
        other = np.take(other, range(len(E)), axis=0, mode="wrap")
        return [float((E * (P & ~own)).mean()) for P in (np.roll(own, len(own) // 2, axis=0), other)]

    place = {video_id: i for i, video_id in enumerate(videos["video_id"])}
    found = {place[video_id]: mistaken(place[video_id], _on_grid(E)) for video_id, E in maps if video_id in place}
    for i, seconds in enumerate(videos["e_per_second"]):
        if i not in found:
            found[i] = mistaken(i, np.asarray(seconds, float)[:, None, None])
    return pd.DataFrame([found[i] for i in range(len(masks))], columns=[SHIFTED, OTHER])


def _on_grid(E: np.ndarray) -> np.ndarray:
    """(S, H, W) -> (S, GRID, GRID), means of whole blocks; E's own grid where it cannot be cut into them."""
    seconds, height, width = E.shape
    if height % GRID or width % GRID:
        index = [np.arange(GRID) * side // GRID for side in (height, width)]
        return E[:, index[0]][:, :, index[1]]
    return E.reshape(seconds, GRID, height // GRID, GRID, width // GRID).mean(axis=(2, 4))


def negative_controls(sample: Sample, mistaken: pd.DataFrame) -> pd.DataFrame:
    """What PE, and each of ``mistaken`` in its place, adds to E, P and ExP by the recommended estimator.

    score, estimate, ci_low, ci_high, p: of the score scaled to 0..1 over the panel. Any E laid over any P is large
    where both are, which ExP knows; what is left is whether the two belong together.
    """
    beside = [name for name in PRODUCTS if name not in sample.constant]
    rows = []
    for name, values in {"PE": sample.frame["PE"], **mistaken}.items():
        values = np.asarray(values, float)
        if np.isnan(values).any() or np.ptp(values) == 0 or len(values) <= len(beside) + 2:
            continue
        scaled = (values - values.min()) / np.ptp(values)
        fitted = huber(sample.frame.assign(score=scaled), ["score", *beside])
        low, high = fitted.conf_int().loc["score"]
        rows.append((name, fitted.params["score"], low, high, fitted.pvalues["score"]))
    return pd.DataFrame(rows, columns=["score", "estimate", "ci_low", "ci_high", "p"])
