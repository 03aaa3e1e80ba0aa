"""What stage 2 regresses: the lift of every treated product's first video beside its scores, as published.

Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from catalog.errors import Refused

SCORES = {"PE": "pe_score", "E": "e_score", "P": "p_score"}
COLUMNS = {
    "PE": ("PE",),
    "E": ("E",),
    "P": ("P",),
    "ExP": ("ExP",),
    "PE, E, P, ExP": ("PE", "E", "P", "ExP"),
}
"""the published columns; the sixth is the fifth with controls and category effects"""
WITH_CONTROLS = "with controls"
COUNTS = ("likes", "comments", "shares")
MIN_LIFTS = 10
MIN_CATEGORY = 5
"""lifts; smaller categories share one effect, for HC3 has no answer to an effect of one video"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """n lifts and what may explain them."""

    frame: pd.DataFrame
    """(n,) video_id, product_id, creator, lift, se_hac; PE, E, P scaled to 0..1 over the panel, ExP = E * P; PE_raw;
    the counts as log1p; controls and category effects"""
    controls: tuple[str, ...]
    categories: tuple[str, ...]
    constant: tuple[str, ...]
    """terms that are the same for all lifts, which no column can have"""

    def columns(self) -> dict[str, list[str]]:
        """Column -> terms; columns without all their terms, or with too few lifts for them, are not there."""
        wanted = COLUMNS | {WITH_CONTROLS: (*COLUMNS["PE, E, P, ExP"], *self.controls, *self.categories)}
        return {
            name: list(terms)
            for name, terms in wanted.items()
            if not set(terms) & set(self.constant) and len(terms) + 1 < len(self.frame)
            and (name != WITH_CONTROLS or self.controls or self.categories)
        }  # fmt: skip

    @property
    def pe(self) -> np.ndarray:
        return self.frame["PE"].to_numpy(float)

    @property
    def lift(self) -> np.ndarray:
        return self.frame["lift"].to_numpy(float)


def sample_of(
    videos: pd.DataFrame, lifts: pd.DataFrame, *, controls: Sequence[str], category: str | None, scores_uri: str
) -> Sample:
    """videos: first videos with their scores, row by row the videos of ``lifts`` (``stage_one.StageOne.table``).

    Numbers of 0 and more that differ by more than a hundredfold go in as log1p. Raises Refused.
    """
    n = len(videos)
    if n < MIN_LIFTS:
        raise Refused(
            f"{n} lifts can be estimated, at least {MIN_LIFTS} are needed to ask whether scores predict them; "
            "give sales and scores of more products"
        )
    frame = pd.DataFrame({name: videos[column].to_numpy(float) for name, column in SCORES.items()})
    if frame["PE"].nunique() == 1:
        raise Refused(
            f"{scores_uri}: pe_score is {frame['PE'][0]:g} for all {n} videos with a lift; nothing can be said of what "
            "does not differ: see in the report of jobs.report whether products were found"
        )
    frame = _scaled(frame)
    frame["ExP"] = frame["E"] * frame["P"]
    frame["PE_raw"] = _scaled(videos[["pe_score_raw"]].astype(float).reset_index(drop=True))["pe_score_raw"]
    creators = videos["creator_id"] if "creator_id" in videos else pd.Series([None] * n)
    frame["creator"] = [
        c if isinstance(c, str) else f"\0{v}" for c, v in zip(creators, videos["video_id"], strict=True)
    ]
    for name in (*COUNTS, "predicted_engagement"):
        if name in videos and videos[name].notna().all():
            values = videos[name].to_numpy(float)
            frame[name] = np.log1p(values) if name in COUNTS else values
    for name in controls:
        frame[name] = _level(videos[name].to_numpy(float))
    effects = _effects(videos[category].reset_index(drop=True)) if category else pd.DataFrame(index=frame.index)
    frame = pd.concat(
        [lifts[["video_id", "product_id", "lift", "se_hac"]].reset_index(drop=True), frame, effects], axis=1
    )
    spread = frame.drop(columns=["video_id", "product_id", "creator"]).nunique()
    constant = tuple(name for name in spread.index if spread[name] == 1)
    return Sample(frame, tuple(c for c in controls if c not in constant), tuple(effects.columns), constant)


def _scaled(values: pd.DataFrame) -> pd.DataFrame:
    """To 0..1 over the panel; what is constant is 0."""
    low, width = values.min(), values.max() - values.min()
    return (values - low) / width.where(width > 0, 1)


def _level(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.log1p(values) if low >= 0 and 1 + high > 100 * (1 + low) else values


def _effects(category: pd.Series) -> pd.DataFrame:
    named = category.astype("string").fillna("none")
    large = named.map(named.value_counts()) >= MIN_CATEGORY
    return pd.get_dummies(named.where(large, "others"), prefix="category", drop_first=True, dtype=float)
