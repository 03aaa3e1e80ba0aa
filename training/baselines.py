"""What can be predicted without looking at a video: a model that does no better has learned nothing from pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression

COUNTS = ("likes", "comments", "shares", "views", "saves")
"""Known only after the video was shown, as the target is: no baseline may see them."""
NOT_FEATURES = ("video_id", "video_uri", "product_id", "creator_id", "title", "posted_at", *COUNTS)
OURS = ("label", "seconds", "weight", "suspicious", "side", "posted_hour", "posted_weekday")
MAX_CATEGORIES = 50


def baselines(
    training: pd.DataFrame, held_out: pd.DataFrame, seed: int, unknown_at_posting: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Predictions of log1p(target) for the held-out videos by each baseline: name -> (N,).

    Both tables: ``label``, ``weight``, ``creator_id`` and whatever columns the videos table had. ``constant`` is the
    training mean, ``creator_mean`` the creator's own (the training mean for a creator who is not in the training
    table, which is all of them where the split is by creator), ``followers`` a line through log1p of that column,
    ``metadata`` gradient boosting on ``metadata_features``; the last two where there are such columns.
    """
    weight = training["weight"]
    mean = float(np.average(training["label"], weights=weight))
    weighted = pd.DataFrame({"sum": training["label"] * weight, "weight": weight}).groupby(training["creator_id"]).sum()
    of_creator = weighted["sum"] / weighted["weight"]
    predictions = {
        "constant": np.full(len(held_out), mean),
        "creator_mean": held_out["creator_id"].map(of_creator.to_dict()).fillna(mean).to_numpy(float),
    }
    if "followers" in training and pd.api.types.is_numeric_dtype(training["followers"]):
        known, asked = (_finite(np.log1p(t[["followers"]].astype(float).clip(lower=0))) for t in (training, held_out))
        if known["followers"].notna().any():
            middle = known.median()
            line = LinearRegression().fit(known.fillna(middle), training["label"], weight)
            predictions["followers"] = line.predict(asked.fillna(middle))
    features = metadata_features(pd.concat([training, held_out], ignore_index=True), len(training), unknown_at_posting)
    if features.shape[1]:
        trees = HistGradientBoostingRegressor(
            categorical_features="from_dtype",
            min_samples_leaf=min(20, max(1, len(training) // 10)),
            early_stopping=False,  # pyright: ignore[reportArgumentType] -- it would take videos away from columns that few of them have
            random_state=seed,
        )
        trees.fit(features[: len(training)], training["label"], weight)
        predictions["metadata"] = trees.predict(features[len(training) :])
    return predictions


def metadata_features(videos: pd.DataFrame, training_rows: int, unknown_at_posting: Sequence[str] = ()) -> pd.DataFrame:
    """Columns that trees can use and that the first ``training_rows`` have: numbers, flags, one of few words; the time
    of posting as hour and weekday (UTC). Without ``NOT_FEATURES`` and what is unknown when a video is posted.
    """
    features = {}
    if "posted_at" in videos:
        posted = pd.to_datetime(videos["posted_at"], utc=True)
        if posted.notna().any():
            features |= {"posted_hour": posted.dt.hour, "posted_weekday": posted.dt.day_of_week}
    left_out = [*NOT_FEATURES, *OURS, *unknown_at_posting]
    for name in videos.columns.difference(left_out, sort=False):
        column: pd.Series = videos[name]  # pyright: ignore[reportAssignmentType]
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if pd.api.types.is_numeric_dtype(column) or kind == "boolean":  # flags with nulls are objects
            features[name] = _finite(column.astype(float))
        elif kind == "string" and 1 < column.nunique() <= MAX_CATEGORIES:
            features[name] = column.astype("category")
    table = pd.DataFrame(features, index=videos.index)
    return table.loc[:, table[:training_rows].notna().any()]


def _finite(values: Any) -> Any:
    return values.replace([np.inf, -np.inf], np.nan)
