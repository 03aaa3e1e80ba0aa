"""E, P and PE second by second, one panel below another."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

PER_SECOND = ["e_per_second", "p_per_second", "pe_per_second"]
E, P, PE = "#0072B2", "#B85000", "#7A1F5C"
COLOURS = dict(zip(PER_SECOND, (E, P, PE), strict=True))
SHADE = "#E6EAEE"
MARGINS = {"left": 0.2, "right": 0.98, "bottom": 0.19, "top": 0.97, "hspace": 0.4}
"""of the panels, shares of the figure"""


def draw_panels(
    figure: Figure,
    values: Mapping[str, Sequence[float]],
    samples_per_second: float,
    tops: Mapping[str, float] | None = None,
) -> None:
    """values: of PER_SECOND, those that the video has. tops: the panels' scales; default: each video's own."""
    n = len(next(iter(values.values())))
    edges = np.arange(n + 1) / samples_per_second
    on_screen = np.array(values.get("p_per_second", [0] * n)) > 0
    margins = MARGINS if len(values) > 1 else MARGINS | {"bottom": 0.3}
    panels = figure.subplots(len(values), sharex=True, squeeze=False, gridspec_kw=margins)[:, 0]
    for axes, (name, column) in zip(panels, values.items(), strict=True):
        top = (tops or {}).get(name) or max(column) or 1
        axes.stairs(on_screen * top * 2, edges, color=SHADE, fill=True)
        axes.stairs(column, edges, color=COLOURS[name], fill=True, alpha=0.25)
        axes.stairs(column, edges, color=COLOURS[name], linewidth=1.6, baseline=None)
        axes.set(ylim=(0, top * 1.08), xlim=(0, edges[-1]), yticks=[0, float(f"{top:.1g}")])
        axes.set_ylabel(name.removesuffix("_per_second").upper(), rotation=0, ha="right", va="center")
    panels[-1].set_xlabel("second")
