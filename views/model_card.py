"""The model card: what a model learned from, how it was judged, and what it must not be used for. Markdown, which
MLflow shows as a run's and a version's description. After Mitchell et al. 2019, "Model Cards for Model Reporting"."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2


def model_card(
    *,
    settings: Mapping[str, Any],
    unit: str,
    counts: Mapping[str, int],
    overlaps: Mapping[str, int],
    undecodable: int,
    suspicious: int,
    adjustment: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, float]],
    creators: int,
    best_baseline: str,
    over_baseline: tuple[float, float, float],
    features: Sequence[str],
    epochs: int,
    tags: Mapping[str, str],
) -> str:
    """unit: of a prediction. counts: side -> videos. evaluations: name -> figures as of ``training.evaluation``, the
    model's first. over_baseline: SRCC over the best baseline's with its interval."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("views"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"figure": _figure, "cell": _cell}
    return environment.get_template("model_card.md").render(
        settings=settings,
        unit=unit,
        counts=counts,
        overlaps=overlaps,
        undecodable=undecodable,
        suspicious=suspicious,
        adjustment=adjustment,
        evaluations=evaluations,
        creators=creators,
        best_baseline=best_baseline,
        over_baseline=over_baseline,
        skilled=over_baseline[1] > 0,
        features=features,
        epochs=epochs,
        tags=tags,
    )


def _figure(figures: Mapping[str, float], name: str) -> str:
    value, low, high = figures[name], figures[f"{name}_low"], figures[f"{name}_high"]
    if math.isnan(value):
        return ""
    return f"{value:.2f}" + ("" if math.isnan(low) else f" ({low:.2f} to {high:.2f})")


def _cell(text: Any) -> str:
    """Text from tables and flags in a Markdown cell."""
    return str(text).replace("|", "\\|").replace("`", "'").replace("\n", " ")
