"""Counts that contradict one another: bought likes, counts that a scraper lost. Weighed less, never dropped."""

import numpy as np
import pandas as pd
from scipy import stats

MANY_LIKES = 100_000
MAX_Z = 5.0
MIN_IN_TIER = 50
TIERS = (0, 1e4, 1e5, 1e6, np.inf)
"""Borders of creators by followers: ratios of counts differ between them."""
PARTS = ("likes", "comments", "shares")


def suspicions(videos: pd.DataFrame) -> pd.Series:
    """Per row why its counts cannot be believed, in words joined by "; "; empty where they can.

    videos: any of ``likes``, ``comments``, ``shares``, ``views``, ``followers``; what is missing is not checked.
    Reasons: more of a kind than views; none of a kind beside MANY_LIKES likes; a ratio of two counts whose logarithm
    lies more than MAX_Z robust standard deviations (from the median absolute deviation) from its tier's median.
    """
    reasons = pd.Series("", index=videos.index)

    def add(rows: pd.Series, words: pd.Series | str) -> None:
        reasons[rows] = (reasons[rows] + "; " + words).str.removeprefix("; ")

    counts = videos.reindex(columns=[*PARTS, "views", "followers"]).astype(float)
    for part in PARTS:
        add(counts[part] > counts["views"], f"more {part} than views")
    for part in ("comments", "shares"):
        add((counts[part] == 0) & (counts["likes"] >= MANY_LIKES), f"{part} 0 beside {MANY_LIKES:,} likes or more")
    tier = pd.cut(counts["followers"], list(TIERS), right=False, labels=False).fillna(-1)
    for part, whole in (("likes", "views"), ("comments", "likes"), ("shares", "likes")):
        known = counts[part].notna() & (counts[whole] > 0)
        ratio = np.log((counts[part][known] + 0.5) / (counts[whole][known] + 0.5))
        z = ratio.groupby(tier[known]).transform(_robust_z)
        odd = z.index[z.abs() > MAX_Z]
        if len(odd):
            words = f"{part} per {whole} is {{:+.1f}} robust standard deviations off its tier's"
            add(pd.Series(reasons.index.isin(odd), reasons.index), z[odd].map(words.format))
    return reasons


def _robust_z(ratio: pd.Series) -> pd.Series:
    spread = stats.median_abs_deviation(ratio, scale="normal")  # pyright: ignore[reportArgumentType]
    if len(ratio) < MIN_IN_TIER or spread == 0:
        return pd.Series(0.0, index=ratio.index)
    return (ratio - ratio.median()) / spread
