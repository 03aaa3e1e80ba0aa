"""Who was treated when, and who can stand beside them: the first scored video of each product, and its controls.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from enum import StrEnum

import numpy as np
import pandas as pd

from analysis.panel import Panel
from catalog.errors import Refused
from catalog.schemas import Status

MIN_CONTROLS = 2
RECENT_DAYS = 30
HORIZON_DAYS = 30
_SCORED = (Status.OK, Status.NOT_LOCALISED)


class Pool(StrEnum):
    """Which products a treated one is compared with."""

    PUBLISHED = "already or never treated"
    NO_RECENT_VIDEO = "without a recent video"
    NOT_YET_TREATED = "not yet treated"


@dataclasses.dataclass(frozen=True)
class Treatment:
    """B treated products, first video each, and the pools of controls, as rows of the panel."""

    videos: pd.DataFrame
    """(B,) video_id, product_id, creator_id and whatever else the tables know of the first video"""
    row: np.ndarray
    """(B,) of the product in the panel"""
    first: np.ndarray
    """(B,) index of the first day after the post: from it on the product is treated"""
    controls: np.ndarray
    """rows of the products whose first post is not within the panel: advertised before it, after it or never"""
    without_recent_video: np.ndarray
    """those of ``controls`` with no video from 30 days before the panel to its end"""
    left_out: dict[str, list[str]]
    """why -> video ids, or product ids where the text says so"""

    def not_yet_treated(self, i: int, days: int) -> np.ndarray:
        """Rows of the treated products that are not treated until 30 days after the post of product ``i``."""
        return self.row[self.first >= min(self.first[i] + HORIZON_DAYS, days)]


def treatment(panel: Panel, videos: pd.DataFrame, scores: pd.DataFrame, *, min_days: int) -> Treatment:
    """videos: video_id, product_id, posted_at and more, one row a video. scores: video_id, status and the scores.

    A product is treated by its first video, from the day after the post; later ones are left out and counted. So are
    posts with fewer than ``min_days`` days before or after them. Raises Refused where nothing is treated or no
    control is left.
    """
    named = videos[videos["product_id"].notna()]
    undated = named[named["posted_at"].isna()]
    dated = named[named["posted_at"].notna()].sort_values(["posted_at", "video_id"], kind="stable")
    posted = dated["posted_at"].dt.tz_convert(None).to_numpy("datetime64[D]")
    dated = dated.assign(post_day=posted)
    start, end = panel.days[0], panel.days[-1]
    firsts = dated.drop_duplicates("product_id")
    within = firsts[(firsts["post_day"] >= start) & (firsts["post_day"] <= end)]
    later = dated[~dated.index.isin(firsts.index) & dated["product_id"].isin(within["product_id"])]
    known = within["product_id"].isin(panel.products)
    before = np.searchsorted(panel.days, within["post_day"].to_numpy("datetime64[D]"), side="right")
    early = (before < min_days) | (len(panel.days) - before < min_days)
    scored = scores[scores["status"].isin(_SCORED)]
    has_scores = within["video_id"].isin(scored["video_id"])
    product = within["video_id"].map(scored.set_index("video_id")["product_id"])
    other = has_scores & (product != within["product_id"])
    usable = known & ~early & has_scores & ~other
    left_out = {
        "product_id given, but no posted_at": undated["video_id"].tolist(),
        "a later video of a product, whose first one defines its lift": later["video_id"].tolist(),
        "its product has no usable series in the sales table": within.loc[~known, "video_id"].tolist(),
        f"fewer than {min_days} days of sales before or after the post": within.loc[known & early, "video_id"].tolist(),
        "its first video has no scores": within.loc[known & ~early & ~has_scores, "video_id"].tolist(),
        "scored for another product than the videos table names": within.loc[
            known & ~early & other, "video_id"
        ].tolist(),
        "scored, but not in the videos table": scores.loc[
            ~scores["video_id"].isin(videos["video_id"]), "video_id"
        ].tolist(),
    }
    chosen = within[usable].merge(
        scored.drop(columns=[c for c in scored if c in within and c != "video_id"]), on="video_id"
    )
    if chosen.empty:
        raise Refused(
            f"no product is treated: of {len(firsts)} products with a dated video, {len(within)} have their first "
            f"within {start} to {end}" + "".join(f"; {len(ids)}: {why}" for why, ids in left_out.items() if ids)
            + "; give sales of the days around the posts"
        )  # fmt: skip
    is_control = ~np.isin(panel.products, [*within["product_id"], *undated["product_id"]])
    recent = dated[(posted >= start - np.timedelta64(RECENT_DAYS, "D")) & (posted <= end)]["product_id"]
    controls = np.flatnonzero(is_control)
    if len(controls) < MIN_CONTROLS:
        raise Refused(
            f"{len(controls)} products can be controls, at least {MIN_CONTROLS} are needed: products of the "
            f"sales table whose first video is not within {start} to {end}; add sales of products "
            "that were not advertised then"
        )
    return Treatment(
        chosen.reset_index(drop=True),
        panel.rows(chosen["product_id"].tolist()),
        np.searchsorted(panel.days, chosen["post_day"].to_numpy("datetime64[D]"), side="right"),
        controls,
        np.flatnonzero(is_control & ~np.isin(panel.products, recent)),
        {why: ids for why, ids in left_out.items() if ids},
    )
