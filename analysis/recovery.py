"""How much of a made-up world's truth a scoring job found again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import spearmanr

from catalog.schemas import Status

MIN_SHARE_OF_FRAME = 0.05


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Figures against the truth; NaN where there was nothing to count."""

    engagement_srcc: float
    """SRCC of predicted and true engagement on creators that the model has not seen"""
    product_recall: float
    """share found of the seconds in which the product is in view, not occluded, and at least 5% of the frame"""
    product_seconds: int
    """how many seconds that were"""
    false_seconds: int
    """seconds without the product in which it was reported"""
    absent_seconds: int
    """how many seconds were without it"""
    pe_spearman: float
    """Spearman of pe_score with true PE over all videos with a product"""
    pe_spearman_held_out: float
    """the same over the videos that the model has not seen"""
    shares_spearman: float
    """Spearman of shares with true PE: what engagement alone knows of it"""

    def lines(self) -> list[str]:
        """The figures in words, each with its goal."""
        found = f"product found in {self.product_recall:.1%} of {self.product_seconds} seconds where it can be seen"
        absent = f"in {self.false_seconds} of {self.absent_seconds} where it is absent"
        seen = f"on videos that training never saw {self.pe_spearman_held_out:.2f}"
        return [
            f"engagement model on unseen creators: SRCC {self.engagement_srcc:.2f} (goal > 0.5)",
            f"{found} (goal >= 95%), and {absent} (goal 0)",
            f"Spearman of pe_score with true PE: {self.pe_spearman:.2f} (goal >= 0.8); {seen}",
            f"Spearman of plain shares with true PE, for comparison: {self.shares_spearman:.2f}",
        ]


def recovery(truth_file: Path, videos: pa.Table, scores: pa.Table, held_out: set[str], target: str) -> Recovery:
    """truth_file: the world's truth.parquet; videos: its videos table; held_out: ids that training never saw."""
    rows: Any = pd.read_parquet(truth_file).merge(scores.to_pandas(), on="video_id").merge(
        videos.select(["video_id", target]).to_pandas(), on="video_id"
    )  # fmt: skip
    rows = rows[rows["status"] != Status.FAILED]
    unseen = rows[rows["video_id"].isin(sorted(held_out))]
    with_product = rows[rows["status"] != Status.NO_PRODUCT]
    unseen_with_product = with_product[with_product["video_id"].isin(sorted(held_out))]
    in_view, absent = _per_second(with_product)
    return Recovery(
        engagement_srcc=_spearman(unseen["predicted_engagement"], unseen[target]),
        product_recall=float(np.mean(in_view)) if in_view else float("nan"),
        product_seconds=len(in_view),
        false_seconds=int(np.sum(absent)),
        absent_seconds=len(absent),
        pe_spearman=_spearman(with_product["pe_score"], with_product["pe_true"]),
        pe_spearman_held_out=_spearman(unseen_with_product["pe_score"], unseen_with_product["pe_true"]),
        shares_spearman=_spearman(with_product[target], with_product["pe_true"]),
    )


def _per_second(rows: Any) -> tuple[list[bool], list[bool]]:
    """Was the product found: in the seconds where it can be, and in those where it is absent."""
    in_view, absent = [], []
    columns = ("product_inliers", "product_visible", "occluded", "product_share")
    for inliers, visible, occluded, share in zip(*(rows[c] for c in columns), strict=True):
        for k, found in enumerate(np.asarray(inliers) > 0):
            if not visible[k]:
                absent.append(bool(found))
            elif not occluded[k] and share[k] >= MIN_SHARE_OF_FRAME:
                in_view.append(bool(found))
    return in_view, absent


def _spearman(a: Any, b: Any) -> float:
    return float(spearmanr(a, b).statistic) if len(a) > 2 else float("nan")
