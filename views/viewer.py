"""A film with its heat, its outline and its chart, as the macro ``viewer`` of viewer.html and video.js take it."""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from views.maps import SavedMap, in_step, quads_of
from views.moments import Moments
from views.page import RC, packed, svg
from views.timeline import MARGINS, PER_SECOND, draw_panels

PORTRAIT_PX, LANDSCAPE_PX = 340, 560
OPACITY = 0.8
"""of the heat where attention is strongest"""


@dataclasses.dataclass(frozen=True)
class Film:
    """The video's bytes (MP4), or why it cannot be shown."""

    mp4: bytes | None = None
    problem: str | None = None


def moments_of(row: Mapping[str, Any], samples_per_second: float, saved: SavedMap | None) -> Moments:
    """row: of schemas.SCORES, of a video that could be looked at."""
    e, p, pe = (None if row[name] is None else np.asarray(row[name], float) for name in PER_SECOND)
    assert e is not None
    return Moments(e, p, pe, samples_per_second, None if saved is None else saved.levels)


def view_of(
    row: Mapping[str, Any],
    moments: Moments,
    saved: SavedMap | None,
    film: Film,
    name: str,
    tops: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """row: of schemas.SCORES. name: what the video is called where it is spoken of. tops: as ``draw_panels``."""
    quads = in_step(quads_of(row["product_quads"], len(moments.e)))
    data: dict[str, Any] = {
        "rate": moments.samples_per_second,
        "end": len(moments.e) / moments.samples_per_second,
        "e": _rounded(moments.e),
        "p": _rounded(moments.p),
        "pe": _rounded(moments.pe),
        "quads": [np.round(copies.reshape(-1, 8), 4).tolist() for copies in quads],
        "left": MARGINS["left"],
        "right": MARGINS["right"],
    }
    scale = ""
    if saved is not None:
        rgb, cover = saved.colours()
        alpha = np.round(OPACITY * 255 * cover).astype(int)
        data |= {"levels": packed(saved.levels), "palette": np.column_stack([rgb, alpha]).tolist()}
        stops = np.searchsorted(cover**2, np.linspace(0, 1, 9)).clip(0, 255)
        scale = ", ".join("rgb({} {} {})".format(*rgb[stop]) for stop in stops)
    return {
        "name": name,
        "row": {"width": row["width"], "height": row["height"]},
        "film": {"data": film.mp4 and Markup(_data_uri(film.mp4)), "problem": film.problem},
        "film_width": PORTRAIT_PX if (row["height"] or 2) > (row["width"] or 1) else LANDSCAPE_PX,
        "data": data,
        "grid": None if saved is None else saved.levels.shape[1:],
        "scale": Markup(scale),
        "located": any(len(copies) for copies in quads),
        "timeline": _timeline(row, moments, name, tops),
        "end_s": data["end"],
        "left": MARGINS["left"],
        "right": MARGINS["right"],
    }


def _timeline(row: Mapping[str, Any], moments: Moments, name: str, tops: Mapping[str, float] | None) -> Markup:
    label = f"{'E, P and PE' if moments.p is not None else 'E'} of {name}, second by second. {moments.missed() or ''}"
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.0, 3.6 if moments.p is not None else 1.8))
        values = {column: row[column] for column in PER_SECOND if row[column] is not None}
        draw_panels(figure, values, moments.samples_per_second, tops)
        return svg(figure, f"timeline-{name.replace(' ', '-')}", label.strip())


def _data_uri(mp4: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"


def _rounded(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else np.round(values, 6).tolist()
