"""Faithfulness of engagement maps as one self-contained HTML page, which fetches nothing and runs nothing."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from scoring.evidence import UNRELATED, in_words, verdicts
from views.page import INK, RC, environment, svg

_COLOURS = {"E": "#0072B2", "centre": "#B85000", "random": "#59636E"}


def faithfulness_page(summary: Mapping[str, Any]) -> str:
    """summary: what faithfulness.json holds -> the page as HTML text."""
    with matplotlib.rc_context(RC):
        charts, cascade = _curve_charts(summary), _cascade(summary)
    page = environment(in_words=in_words).get_template("faithfulness.html")
    return page.render(summary, verdicts=verdicts(summary), curve_charts=charts, cascade=cascade, unrelated=UNRELATED)


def _curve_charts(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for name, curve in summary["curves"].items():
        what, infill, order = name.split("/")
        kinds.setdefault((what, infill), {})[order] = curve
    charts = []
    for (what, infill), curves in kinds.items():
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for order, curve in curves.items():
            levels = len(curve["mean"]) + 1
            shares = np.arange(1, levels) / levels
            axes.plot(shares, curve["mean"], color=_COLOURS[order], label=order, marker=".")
            if None not in curve["low"]:
                axes.fill_between(shares, curve["low"], curve["high"], color=_COLOURS[order], alpha=0.15, linewidth=0)
        axes.set(xlabel="share of the squares", ylabel="distance of the prediction", ylim=(0, None))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(frameon=False, title="order")
        gains = [gain for gain in summary["gains"] if (gain["what"], gain["infill"]) == (what, infill)]
        better = "; ".join(f"better than {gain['over']} by {in_words(gain)}" for gain in gains)
        drawn = svg(figure, f"{what}-{infill}".replace(" ", "-"), f"{what} with {infill}: {better}")
        charts.append({"title": f"{what.capitalize()}, {infill}", "svg": drawn, "gains": f"E’s order is {better}."})
    return charts


def _cascade(summary: Mapping[str, Any]) -> Markup:
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhspan(-UNRELATED, UNRELATED, color="#E6EAEE")
    said = []
    for key, name, colour in (
        ("randomised_inside", "inside the frame", "#0072B2"),
        ("randomised", "with its border", "#59636E"),
    ):
        stages = list(summary[key])
        means = np.array([summary[key][stage]["mean"] for stage in stages], float)
        axes.plot(stages, means, color=colour, marker="o", label=name)
        ends = [(summary[key][stage]["low"], summary[key][stage]["high"]) for stage in stages]
        if all(low is not None for low, _ in ends):
            low, high = np.array(ends, float).T
            axes.vlines(stages, low, high, color=colour)
        said += [f"{name}, {stage}: {mean:.2f}" for stage, mean in zip(stages, means, strict=True)]
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.legend(frameon=False)
    axes.set(xlabel="weights drawn anew, down to", ylabel="Spearman with the true E", ylim=(-0.4, 1))
    return svg(
        figure, "cascade", f"Spearman with the true E, by stage down to which weights are new: {'; '.join(said)}"
    )
