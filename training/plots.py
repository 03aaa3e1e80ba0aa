"""The pictures of a training run that MLflow shows."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.evaluation import Evaluation


def learning_curves(epochs: list[dict[str, float]]) -> Figure:
    """Losses and held-out SRCC over the epochs."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, ranks = figure.subplots(1, 2)
    number = [epoch["epoch"] for epoch in epochs]
    for name in ("train/loss", "val/loss"):
        losses.plot(number, [epoch[name] for epoch in epochs], marker="o", label=name)
    losses.set(xlabel="epoch", ylabel="loss", yscale="log")  # a warm-up's first epochs may be a hundred times higher
    losses.legend()
    ranks.plot(number, [epoch["val/srcc"] for epoch in epochs], marker="o", color="tab:green")
    ranks.set(xlabel="epoch", ylabel="SRCC, val", ylim=(-1, 1))
    ranks.axhline(0, color="grey", linewidth=0.8)
    for axes in (losses, ranks):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def held_out_predictions(evaluation: Evaluation, unit: str) -> Figure:
    """Predicted against true engagement of the held-out videos."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(evaluation.prediction, evaluation.held_out.label, s=18, alpha=0.7)
    low = min(evaluation.prediction.min(), evaluation.held_out.label.min())
    high = max(evaluation.prediction.max(), evaluation.held_out.label.max())
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8)
    srcc = evaluation.figures["srcc"]
    axes.set(xlabel=f"predicted {unit}", ylabel=f"true {unit}", title=f"held-out videos, SRCC {srcc:.2f}")
    return figure


def calibration_plot(deciles: pd.DataFrame, unit: str) -> Figure:
    """Mean prediction against mean truth, from ``training.evaluation.calibration``."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    around = [deciles["true"] - deciles["true_low"], deciles["true_high"] - deciles["true"]]
    axes.errorbar(deciles["predicted"], deciles["true"], yerr=np.abs(around), fmt="o", capsize=3)
    ends = [deciles[["predicted", "true"]].min().min(), deciles[["predicted", "true"]].max().max()]
    axes.plot(ends, ends, color="grey", linewidth=0.8)
    axes.set(xlabel=f"mean predicted {unit}", ylabel=f"mean true {unit}, 95%", title="tenths of the held-out videos")
    return figure


def comparison(rows: dict[str, Evaluation]) -> Figure:
    """SRCC with its interval, a line a model."""
    figure = Figure(figsize=(6, 0.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (name, evaluation) in enumerate(reversed(rows.items())):
        figures = evaluation.figures
        low, high = figures["srcc_low"], figures["srcc_high"]
        if low == low:
            axes.plot([low, high], [place, place], color="tab:blue")
        axes.plot(figures["srcc"], place, "o", color="tab:blue")
        axes.annotate(name, (-0.02, place), xycoords=("axes fraction", "data"), ha="right", va="center")
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="SRCC on the held-out videos, 95% over creators", yticks=[], ylim=(-0.5, len(rows) - 0.5))
    return figure
