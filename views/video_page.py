"""One video as a self-contained HTML page: the film with E and P over it, its chart, how it compares, what to try."""

import base64
import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from matplotlib.figure import Figure

from catalog.schemas import Status
from scoring.evidence import in_words, verdicts
from views.maps import SavedMap
from views.moments import Moments, hook
from views.numbers import percentile, rank_text, score_text, share_text
from views.page import RC, environment, packed, svg, time_text
from views.timeline import MARGINS, PER_SECOND, draw_panels

MEASURES = {
    "pe_score": ("PE: attention that lands on the product", score_text),
    "e_on_product": ("Attention on the product", score_text),
    "e_score": ("E: attention anywhere", score_text),
    "p_score": ("P: the product’s share of the picture", share_text),
    "hook": (
        "Opening: attention of the first 3 s, in times of the video’s",
        lambda v: "–" if v is None else f"{v:.2f}",
    ),
    "predicted_engagement": ("Predicted engagement", lambda v: "–" if v is None else f"{v:.3f}"),
}
PORTRAIT_PX, LANDSCAPE_PX = 340, 560
WEAK_INLIERS = 2
"""times the fewest matches that count as a sighting: below that a sighting is a weak one"""


@dataclasses.dataclass(frozen=True)
class Film:
    """The video's bytes (MP4), or why it cannot be shown."""

    mp4: bytes | None = None
    problem: str | None = None


def video_page(
    scores: pa.Table,
    video_id: str,
    film: Film,
    saved: SavedMap | None = None,
    summary: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    categories: Mapping[str, str] | None = None,
) -> str:
    """The page as HTML text.

    scores: rows of schemas.SCORES, each video once, ``video_id`` among them. saved: its map. summary, config: as
    ``report_page``. about: what is known of the video: title, creator_id, product_title. categories: product_id ->
    category.
    """
    config = config or {}
    rate = float(config.get("sample_fps") or 1.0)
    row = scores.filter(pc.equal(scores["video_id"], video_id)).to_pylist()[0]
    category = (categories or {}).get(row["product_id"] or "")
    known = {name: (about or {}).get(name) for name in ("title", "creator_id", "product_title")}
    evidence = (summary or {}).get("faithfulness")
    page: dict[str, Any] = {
        "row": row,
        "about": known | {"category": category},
        "film": {"data": film.mp4 and Markup(_data_uri(film.mp4)), "problem": film.problem},
        "film_width": PORTRAIT_PX if (row["height"] or 2) > (row["width"] or 1) else LANDSCAPE_PX,
        "evidence": evidence,
        "verdicts": verdicts(evidence) if evidence else [],
        "made_at": datetime.datetime.now(datetime.UTC),
    }
    if row["status"] != Status.FAILED:
        moments = _moments(row, rate, saved)
        page |= _drawn(row, moments, saved)
        page |= {
            "measures": _measures(scores, row, rate, categories or {}, category),
            "hook": moments.hook(),
            "missed": moments.missed(),
            "suggestions": moments.suggestions(),
            "localisation": _localisation(row, int(config.get("min_inliers") or 0)),
        }
    templates = environment(rank=rank_text, when=time_text, in_words=in_words)
    return templates.get_template("video.html").render(page)


def _data_uri(mp4: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"


def _moments(row: Mapping[str, Any], rate: float, saved: SavedMap | None) -> Moments:
    e, p, pe = (None if row[name] is None else np.asarray(row[name], float) for name in PER_SECOND)
    assert e is not None
    return Moments(e, p, pe, rate, None if saved is None else saved.levels)


def _drawn(row: Mapping[str, Any], moments: Moments, saved: SavedMap | None) -> dict[str, Any]:
    """What the chart and the script take."""
    quads = row["product_quads"] or [None] * len(moments.e)
    data: dict[str, Any] = {
        "rate": moments.samples_per_second,
        "end": len(moments.e) / moments.samples_per_second,
        "e": _rounded(moments.e),
        "p": _rounded(moments.p),
        "pe": _rounded(moments.pe),
        "quads": [None if quad is None else np.round(quad, 4).tolist() for quad in quads],
        "left": MARGINS["left"],
        "right": MARGINS["right"],
    }
    scale = ""
    if saved is not None:
        rgb, cover = saved.colours()
        alpha = np.round(0.8 * 255 * cover).astype(int)
        data |= {"levels": packed(saved.levels), "palette": np.column_stack([rgb, alpha]).tolist()}
        stops = np.searchsorted(cover**2, np.linspace(0, 1, 9)).clip(0, 255)
        scale = ", ".join("rgb({} {} {})".format(*rgb[stop]) for stop in stops)
    missed = moments.missed()
    label = f"{'E, P and PE' if moments.p is not None else 'E'} second by second. {missed or ''}".strip()
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.0, 3.6 if moments.p is not None else 1.8))
        values = {name: row[name] for name in PER_SECOND if row[name] is not None}
        draw_panels(figure, values, moments.samples_per_second)
        timeline = svg(figure, "timeline", label)
    return {
        "data": data,
        "grid": None if saved is None else saved.levels.shape[1:],
        "scale": Markup(scale),
        "located": any(quad is not None for quad in quads),
        "timeline": timeline,
        "end_s": data["end"],
        "left": MARGINS["left"],
        "right": MARGINS["right"],
    }


def _rounded(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else np.round(values, 6).tolist()


def _measures(
    scores: pa.Table, row: Mapping[str, Any], rate: float, categories: Mapping[str, str], category: str | None
) -> list[dict[str, Any]]:
    """The video's figures and their percentiles, among all videos and among those of its category."""
    alike = pa.array([product for product, its in categories.items() if its == category], pa.string())
    peers = scores.filter(pc.is_in(scores["product_id"], alike)) if category else scores.slice(0, 0)
    measures = []
    for name, (title, text) in MEASURES.items():
        own = hook(np.asarray(row["e_per_second"]), rate) if name == "hook" else row[name]
        every, near = (_values(table, name, rate) for table in (scores, peers))
        measures.append(
            {
                "name": title,
                "text": text(own),
                "rank": percentile(every, own),
                "n": len(every),
                "category_rank": percentile(near, own),
                "category_n": len(near),
            }
        )
    return measures


def _values(scores: pa.Table, name: str, rate: float) -> np.ndarray:
    if name != "hook":
        return scores[name].drop_null().to_numpy()
    lists = (values.values.to_numpy() for values in scores["e_per_second"].drop_null() if values.values is not None)
    found = (hook(values, rate) for values in lists)
    return np.array([value for value in found if value is not None])


def _localisation(row: Mapping[str, Any], min_inliers: int) -> str | None:
    """How surely the product was found, in words; None without a product."""
    inliers = row["product_inliers"]
    if inliers is None:
        return None
    found = np.array([n for n in inliers if n])
    if not len(found):
        return f"The product was looked for in {len(inliers)} sampled seconds and found in none."
    said = (
        f"The product was found in {len(found)} of {len(inliers)} sampled seconds, in half of them by at least "
        f"{int(np.median(found))} matching details."
    )
    weak = [str(k) for k, n in enumerate(inliers) if n and n < WEAK_INLIERS * min_inliers]
    if weak:
        said += f" Look whether the outline is right where few details carry it: sample{_s(weak)} {', '.join(weak)}."
    return said


def _s(items: list[str]) -> str:
    return "" if len(items) == 1 else "s"
