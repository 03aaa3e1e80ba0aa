"""How scores moved between two runs over the same videos: per score, per video, by group."""

import numpy as np
import pandas as pd
from scipy import stats

SCORES = ("pe", "e_score", "p_score", "e_on_product", "predicted_engagement")
BINS = 10
MIN_VIDEOS = 3
"""for a figure about several"""


def psi(first: np.ndarray, second: np.ndarray, bins: int = BINS) -> float | None:
    """Population stability index, sum of (q - p) ln(q / p) over tenths of the first's values (Siddiqi 2006): below 0.1
    little has moved, above 0.25 much. Half a video is added to every bin, so that empty ones stay finite. float64 (n,)
    and (m,) without NaN; None where either is empty."""
    if not len(first) or not len(second):
        return None
    edges = np.unique(np.quantile(first, np.linspace(0, 1, bins + 1)[1:-1]))
    p, q = (
        np.bincount(np.searchsorted(edges, run, side="right"), minlength=len(edges) + 1) + 0.5
        for run in (first, second)
    )
    return float(stats.entropy(p, q) + stats.entropy(q, p))


def psi_by_chance(n: int, m: int, bins: int = BINS) -> float:
    """Below this in 95% of pairs of samples of one distribution: PSI nm / (n + m) is chi-square with bins - 1 degrees
    of freedom (Yurdakul and Naranjo 2020). Runs over the same videos differ by chance less than that."""
    return float(stats.chi2.ppf(0.95, bins - 1) * (1 / n + 1 / m))


def drift(both: pd.DataFrame) -> pd.DataFrame:
    """A row a score: videos with it in both runs, Spearman, means, psi and psi_by_chance.

    both: a row a video with columns NAME_first and NAME_second for the names in SCORES, null where there is none.
    """
    rows = []
    for score in SCORES:
        pair = both[[f"{score}_first", f"{score}_second"]].dropna().astype(float)
        first, second = pair.to_numpy().T
        ranked = len(pair) >= MIN_VIDEOS and np.ptp(first) > 0 and np.ptp(second) > 0
        rows.append(
            {
                "score": score,
                "videos": len(pair),
                "spearman": stats.spearmanr(first, second).statistic if ranked else None,
                "mean_first": first.mean() if len(pair) else None,
                "mean_second": second.mean() if len(pair) else None,
                "psi": psi(first, second),
                "psi_by_chance": psi_by_chance(len(pair), len(pair)) if len(pair) else None,
            }
        )
    return pd.DataFrame(rows)


def by_group(both: pd.DataFrame, column: str) -> pd.DataFrame:
    """A row a value of ``column`` that at least MIN_VIDEOS videos with PE in both runs have, the most moved first:
    value, videos, mean PE in each run, mean change and mean absolute change of the percentile.

    both: as for ``drift``, with rank_first and rank_second, percentiles of PE.
    """
    known = both.dropna(subset=["rank_first", "rank_second", column])
    change = known["rank_second"] - known["rank_first"]
    groups = known.assign(change=change, moved=change.abs()).groupby(column)
    table = groups.agg(
        videos=("change", "size"), pe_first=("pe_first", "mean"), pe_second=("pe_second", "mean"),
        change=("change", "mean"), moved=("moved", "mean"),
    )  # fmt: skip
    table = table[table["videos"] >= MIN_VIDEOS].sort_values("moved", ascending=False, kind="stable")
    return table.reset_index(names="value")
