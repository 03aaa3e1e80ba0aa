"""What the pages have in common: one look of charts, and templates that escape every text.

A page fetches nothing and runs nothing.
"""

import datetime
import io
import re
from collections.abc import Callable
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

INK = "#1F2328"
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pe-score",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8C8C8C",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as inline SVG whose ids are unique on the page."""
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = sink.getvalue()
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawn[drawn.index("<svg") :])
    return Markup(drawn.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(label), 1))


def environment(**filters: Callable[[Any], str]) -> jinja2.Environment:
    """Of views/templates, with ``filters`` by name."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("views"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= filters
    return made


def time_text(value: datetime.datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC"
