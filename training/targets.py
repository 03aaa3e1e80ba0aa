"""What the model learns: log1p of an engagement count or rate, of the videos whose counts can be believed to be final,
and what is taken out of it."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from catalog.errors import Refused
from training.residuals import CATEGORIES, Residualizer, fit_residualizer
from training.settings import TargetConfig
from training.suspicious import suspicions

MIN_VIDEOS = 8
FEW_VIDEOS = 100
PER_VIEWS = 1000
MAX_WINSORIZE = 0.25
DURATION = "duration"
RESERVED = ("label", "weight", "suspicious", "side", "key", "seconds", "hashes", "part")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled videos."""

    table: pd.DataFrame
    """all columns of the videos table, and ``label`` (log1p of the target), ``weight``, ``suspicious`` (why its counts
    cannot be believed, or "")"""
    left_out: dict[str, int]
    """why -> how many videos"""
    warnings: tuple[str, ...]


def columns_of(target: str) -> tuple[str, ...]:
    """The columns of the videos table that the target is made of."""
    count, per, _ = target.partition("_per_view")
    return (count, "views") if per else (count,)


def unit_of(config: TargetConfig) -> str:
    """What a prediction is in, for people."""
    count, per, _ = config.target.partition("_per_view")
    rest = " less what columns explain" if config.residualize else ""
    return (f"log1p({count} per {PER_VIEWS:,} views)" if per else f"log1p({count})") + rest


def label_of(table: pd.DataFrame, target: str) -> np.ndarray:
    """(N,) log1p of the target, NaN where it is unknown, or a rate of no views."""
    count, *views = (table[name].astype(float) for name in columns_of(target))
    value = PER_VIEWS * count / views[0].where(views[0] > 0) if views else count
    return np.log1p(value.to_numpy())


def labelled(videos: pa.Table, videos_uri: str, config: TargetConfig) -> Examples:
    """Label a videos table. Raises Refused where there is too little to learn from."""
    _check(config)
    table = videos.to_pandas()
    ours = [name for name in RESERVED if name in table]
    table = table.drop(columns=ours)
    table["label"] = label_of(table, config.target)
    posted = _times(table, "posted_at")
    if posted is not None:
        table["posted_hour"], table["posted_weekday"] = posted.dt.hour, posted.dt.day_of_week
    without_label, columns = table["label"].isna(), " and ".join(columns_of(config.target))
    left_out = {f"without {columns}": int(without_label.sum())}
    keep = ~without_label
    if config.min_age_days:
        keep &= _old_enough(table, videos_uri, config, keep, left_out)
    table = table[keep].reset_index(drop=True)
    reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
    if len(table) < MIN_VIDEOS:
        raise Refused(
            f"{videos_uri}: {len(table)} of {videos.num_rows} videos can be learned from"
            f"{f' ({reasons})' if reasons else ''}; at least {MIN_VIDEOS} are needed, and some thousands to learn well"
        )
    if table["label"].nunique() == 1:
        only = np.expm1(table["label"].iloc[0])
        raise Refused(f"{videos_uri}: all {config.target} are {only:.6g}: there is nothing to learn")
    for name in columns_to_residualize(config):
        derived = name == DURATION or (name in CATEGORIES and posted is not None)
        if name in ours:
            raise Refused(f"--residualize {name}: training has a column {name} itself; rename that of {videos_uri}")
        if name not in table and not derived:
            raise Refused(f"--residualize {name}: {videos_uri} has no such column; its columns are "
                          f"{', '.join(column for column in videos.column_names if column not in ours)}")  # fmt: skip
        if name in columns_of(config.target):
            raise Refused(f"--residualize {name}: the target {config.target} itself is made of it")
    table["suspicious"] = suspicions(table)
    table["weight"] = np.where(table["suspicious"] == "", 1.0, config.suspicious_weight)
    warnings = [f"the table's column {name} is not used: training has one of that name" for name in ours]
    if len(table) < FEW_VIDEOS:
        warnings.append(
            f"{len(table)} videos are too few to learn from (at least {FEW_VIDEOS}, better some thousands): "
            "this model's maps and scores mean nothing"
        )
    unknown = int(table["creator_id"].isna().sum())
    if unknown:
        warnings.append(f"{unknown} videos have no creator_id; each is taken as a creator of its own")
    return Examples(table, {why: count for why, count in left_out.items() if count}, tuple(warnings))


def columns_to_residualize(config: TargetConfig) -> tuple[str, ...]:
    """``--residualize a,b c`` as (a, b, c)."""
    return tuple(dict.fromkeys(name for given in config.residualize for name in given.split(",") if name))


@dataclasses.dataclass(frozen=True)
class Adjustment:
    """How labels became what the model learns: fitted on the training videos, stored with the model."""

    low: float
    high: float
    """training labels beyond these are set to them"""
    residualizer: Residualizer | None

    def apply(self, table: pd.DataFrame, training: bool) -> np.ndarray:
        """(N,) from ``label`` to what is learned. Only training labels are winsorized: a model is judged on what
        happened."""
        label = table["label"].to_numpy(float)
        label = label.clip(self.low, self.high) if training else label
        return label if self.residualizer is None else label - self.residualizer.explained(table)

    def to_dict(self) -> dict[str, Any]:
        return {
            "winsorized_to": None if np.isinf(self.low) else [self.low, self.high],
            "residualizer": None if self.residualizer is None else self.residualizer.to_dict(),
        }


def fit_adjustment(training: pd.DataFrame, config: TargetConfig, seed: int) -> Adjustment:
    """``training``: the training videos of ``Examples.table``, with ``duration`` where it is residualised on."""
    label, weight = training["label"].to_numpy(float), training["weight"].to_numpy(float)
    low, high = -np.inf, np.inf
    if config.winsorize:
        low, high = (float(bound) for bound in np.quantile(label, (config.winsorize, 1 - config.winsorize)))
    columns = columns_to_residualize(config)
    if not columns:
        return Adjustment(low, high, None)
    return Adjustment(low, high, fit_residualizer(training, columns, label.clip(low, high), weight, seed))


def _check(config: TargetConfig) -> None:
    if not 0 <= config.winsorize < MAX_WINSORIZE:
        raise Refused(f"--winsorize is {config.winsorize}, expected a share from 0 to below {MAX_WINSORIZE}")
    if not 0 < config.suspicious_weight <= 1:
        raise Refused(f"--suspicious-weight is {config.suspicious_weight}, expected above 0, up to 1")
    if not config.min_age_days >= 0:
        raise Refused(f"--min-age-days is {config.min_age_days}, expected at least 0")
    if config.as_of is not None and not config.min_age_days:
        raise Refused("--as-of says when counts were taken; it needs --min-age-days, the age that videos must have")


def _times(table: pd.DataFrame, name: str) -> pd.Series | None:
    if name not in table or not table[name].notna().any():
        return None
    return pd.to_datetime(table[name], utc=True, errors="coerce")


def _old_enough(
    table: pd.DataFrame, videos_uri: str, config: TargetConfig, keep: pd.Series, left_out: dict[str, int]
) -> pd.Series:
    posted, taken = _times(table, "posted_at"), _times(table, "scraped_at")
    if posted is None:
        raise Refused(f"--min-age-days: {videos_uri} does not say when videos were posted; give a column posted_at")
    if config.as_of is not None:
        try:
            taken = pd.Timestamp(config.as_of)
        except ValueError as error:
            raise Refused(f"--as-of {config.as_of} is no date, expected one such as 2026-11-01") from error
        taken = taken.tz_localize("UTC") if taken.tzinfo is None else taken.tz_convert("UTC")
    elif taken is None:
        taken = pd.Timestamp(datetime.now(UTC)).normalize()  # so that a run can be taken up later that day
    age = taken - posted
    young = age < pd.Timedelta(days=config.min_age_days)
    left_out["of unknown age"] = int((keep & age.isna()).sum())
    left_out[f"younger than {config.min_age_days:g} days"] = int((keep & young).sum())
    return age.notna() & ~young
