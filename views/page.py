"""What the pages have in common: one look of charts, templates that escape every text, scripts that are known.

A page fetches nothing. Its content security policy names the digests of its own scripts, so nothing else runs in it,
whatever a table's texts hold.
"""

import base64
import datetime
import hashlib
import importlib.resources
import io
import re
import zlib
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
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
    """Of views/templates, with ``filters`` by name and ``when``, for times."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("views"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= filters | {"when": time_text}
    made.globals["script"] = script
    return made


def script(*names: str) -> dict[str, Markup]:
    """Of views/templates, joined: ``text``, and ``source``, what a content security policy calls it."""
    folder = importlib.resources.files("views") / "templates"
    text = "\n".join((folder / name).read_text() for name in names)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"text": Markup(text), "source": Markup(f"'sha256-{digest}'")}


def packed(values: np.ndarray) -> str:
    """The array's bytes, deflated, in base64: what ``unpacked`` of pack.js reads."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode()


def time_text(value: datetime.datetime) -> str:
    return f"{value:%Y-%m-%d %H:%M} UTC"
