"""How well the scores predict lifts of creators that the fit has not seen.

Kernel code: imports neither Ray nor MLflow.
"""

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.inspection import permutation_importance
from sklearn.linear_model import HuberRegressor
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.sample import COUNTS, Sample

FOLDS = 5
REPEATS = 20
"""of the permutation of each column"""


def out_of_sample(sample: Sample, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(model, columns, r2, srcc, n), and what gradient boosting's prediction loses where a column is permuted among
    held-out videos: (term, loss, share). Both empty where fewer than five creators are known.

    r2 is 1 - squared error over that of the training folds' mean, so it can be below 0; srcc is taken over all folds.
    """
    frame = sample.frame
    groups = pd.factorize(frame["creator"])[0]
    if len(np.unique(groups)) < FOLDS:
        return pd.DataFrame(columns=["model", "columns", "r2", "srcc", "n"]), pd.DataFrame(
            columns=["term", "loss", "share"]
        )
    scores = [name for name in ("PE", "E", "P", "ExP") if name not in sample.constant]
    counts = [name for name in COUNTS if name in frame and name not in sample.constant]
    everything = [*scores, *counts, *sample.controls]
    boosting = GradientBoostingRegressor(max_depth=3, min_samples_leaf=10, random_state=seed)
    linear = make_pipeline(StandardScaler(), HuberRegressor(max_iter=1000))
    asked = [("Huber", linear, ["PE"]), ("Huber", linear, scores), ("boosting", boosting, scores)]
    if counts:
        asked += [("Huber", linear, counts), ("boosting", boosting, counts), ("boosting", boosting, everything)]
    rows = []
    for name, model, terms in asked:
        predicted, usual = _held_out(model, frame, terms, groups)
        error = ((sample.lift - predicted) ** 2).sum()
        srcc = stats.spearmanr(sample.lift, predicted).statistic if np.ptp(predicted) else 0.0
        rows.append((name, ", ".join(terms), 1 - error / ((sample.lift - usual) ** 2).sum(), srcc, len(frame)))
    importance = _importance(boosting, frame, everything, groups, seed)
    return pd.DataFrame(rows, columns=["model", "columns", "r2", "srcc", "n"]), importance


def _held_out(
    model: BaseEstimator, frame: pd.DataFrame, terms: list[str], groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    x, y = frame[terms].to_numpy(float), frame["lift"].to_numpy(float)
    predicted, usual = np.empty(len(y)), np.empty(len(y))
    for training, held_out in GroupKFold(FOLDS).split(x, y, groups):
        predicted[held_out] = model.fit(x[training], y[training]).predict(x[held_out])  # pyright: ignore
        usual[held_out] = y[training].mean()
    return predicted, usual


def _importance(
    model: BaseEstimator, frame: pd.DataFrame, terms: list[str], groups: np.ndarray, seed: int
) -> pd.DataFrame:
    x, y = frame[terms].to_numpy(float), frame["lift"].to_numpy(float)
    loss = np.zeros(len(terms))
    for training, held_out in GroupKFold(FOLDS).split(x, y, groups):
        fitted = model.fit(x[training], y[training])  # pyright: ignore
        found = permutation_importance(
            fitted, x[held_out], y[held_out], scoring="neg_mean_squared_error", n_repeats=REPEATS, random_state=seed
        )
        loss += found.importances_mean * len(held_out) / len(y)  # pyright: ignore
    gain = loss.clip(0)
    share = gain / gain.sum() if gain.sum() > 0 else gain
    table = pd.DataFrame({"term": terms, "loss": loss, "share": share})
    return table.sort_values("loss", ascending=False, kind="stable").reset_index(drop=True)
