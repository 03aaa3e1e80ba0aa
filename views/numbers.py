"""How numbers are written on the pages, and where they stand among others."""

import numpy as np
from scipy.stats import percentileofscore


def percentile(values: np.ndarray, value: float | None) -> float | None:
    """Percentile rank of ``value`` in ``values``, 0 to 100; ties count half. None where there is nothing to compare."""
    return None if value is None or not len(values) else float(percentileofscore(values, value, kind="mean"))


def score_text(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.0001" if 0 < value < 0.0001 else f"{value:.4f}"


def share_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def rank_text(value: float | None) -> str:
    if value is None:
        return "–"
    return "> 99" if value > 99.5 else "< 1" if value < 0.5 else f"{value:.0f}"


def figure_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1 else f"{value:,.2f}"
