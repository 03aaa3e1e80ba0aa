"""What is known of a video without looking at it, taken out of its engagement."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

PENALTIES = tuple(10.0 ** np.arange(-3, 4))
MIN_OF_LEVEL = 2
MISSING = ""
LOGARITHMIC = ("followers", "likes", "comments", "shares", "views", "saves")
CATEGORIES = ("posted_hour", "posted_weekday")
"""numbers that are names of groups: an effect each, not a line"""


@dataclasses.dataclass(frozen=True)
class Line:
    """slope * (x - mean) / scale, where x is ``middle`` if unknown."""

    middle: float
    mean: float
    scale: float
    slope: float


@dataclasses.dataclass(frozen=True)
class Residualizer:
    """A ridge regression of the target on columns of the videos table, as plain numbers that a model can carry.

    Effects of levels (creators, categories) are shrunk towards 0 by one penalty, chosen by cross-validation on the
    training videos: next to none where levels have many videos, fixed effects then. Levels with fewer than
    MIN_OF_LEVEL training videos, and those that training has not seen, share one effect: alone, a video's whole
    deviation would be its creator's effect, and its label 0.
    """

    lines: Mapping[str, Line]
    effects: Mapping[str, Mapping[str, float]]
    """column -> level -> effect"""
    rest: Mapping[str, float]
    """column -> the effect that all other levels share"""
    penalty: float
    explained_share: float
    """R2 on the training videos"""

    def explained(self, table: pd.DataFrame) -> np.ndarray:
        """(N,) what the columns add to the target of each video, 0 for the mean training video."""
        total = np.zeros(len(table))
        for name, line in self.lines.items():
            values = _numbers(table, name).fillna(line.middle).to_numpy()
            total += line.slope * (values - line.mean) / line.scale
        for name, effects in self.effects.items():
            total += _levels(table, name).map(effects).fillna(self.rest[name]).to_numpy(float)
        return total

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def fit_residualizer(
    training: pd.DataFrame, columns: tuple[str, ...], label: np.ndarray, weight: np.ndarray, seed: int
) -> Residualizer:
    """``training``: the training videos with ``columns``; label, weight: (N,)."""
    numeric = [name for name in columns if is_number(training, name)]
    words = [name for name in columns if name not in numeric]
    numbers = {name: _numbers(training, name) for name in numeric}
    middles = {name: float(np.nan_to_num(values.median())) for name, values in numbers.items()}
    filled = pd.DataFrame(
        {name: numbers[name].fillna(middles[name]) for name in numeric}
        | {name: _levels(training, name) for name in words}
    )
    transformer = make_column_transformer(
        (StandardScaler(), numeric),
        (OneHotEncoder(min_frequency=MIN_OF_LEVEL, handle_unknown="infrequent_if_exist"), words),
    )
    search = GridSearchCV(
        make_pipeline(transformer, Ridge(solver="sparse_cg" if words else "auto")),
        {"ridge__alpha": PENALTIES},
        cv=KFold(min(5, len(training) // 2), shuffle=True, random_state=seed),
    )
    search.fit(filled, label, ridge__sample_weight=weight)
    fitted, ridge = search.best_estimator_[0], search.best_estimator_[1]  # pyright: ignore
    coefficients = iter(ridge.coef_)
    lines, effects, rest = {}, {}, {}
    scaler = fitted.named_transformers_.get("standardscaler")
    for i, name in enumerate(numeric):
        lines[name] = Line(middles[name], float(scaler.mean_[i]), float(scaler.scale_[i]), float(next(coefficients)))
    encoder = fitted.named_transformers_.get("onehotencoder")
    for i, name in enumerate(words):
        rare = encoder.infrequent_categories_[i]
        rare = set() if rare is None else set(rare)
        own = {level: float(next(coefficients)) for level in encoder.categories_[i] if level not in rare}
        shared = float(next(coefficients)) if rare else 0.0
        middle = float(filled[name].map(own).fillna(shared).mean())  # so that the mean video is explained as 0
        effects[name] = {level: effect - middle for level, effect in own.items()}
        rest[name] = shared - middle if rare else 0.0
    r2 = float(r2_score(label, search.predict(filled), sample_weight=weight))
    return Residualizer(lines, effects, rest, search.best_params_["ridge__alpha"], r2)


def is_number(table: pd.DataFrame, name: str) -> bool:
    column = table[name]
    is_id = name.endswith("_id") or name in CATEGORIES or pd.api.types.is_bool_dtype(column)
    return pd.api.types.is_numeric_dtype(column) and not is_id


def _numbers(table: pd.DataFrame, name: str) -> pd.Series:
    values = table[name].astype(float).replace([np.inf, -np.inf], np.nan)
    return values.clip(lower=0).map(np.log1p) if name in LOGARITHMIC else values


def _levels(table: pd.DataFrame, name: str) -> pd.Series:
    column = table[name]
    return column.astype(object).where(column.notna(), MISSING).astype(str)
