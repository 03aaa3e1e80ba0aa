"""One video as a self-contained HTML page: the film with E and P over it, its chart, how it compares, what to try."""

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.schemas import Status
from scoring.evidence import in_words, verdicts
from views.maps import SavedMap
from views.moments import HOOK_S, hook
from views.numbers import percentile, rank_text, score_text, share_text
from views.page import environment
from views.viewer import Film, moments_of, view_of

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
WEAK_INLIERS = 2
"""times the fewest matches that count as a sighting: below that a sighting is a weak one"""


def video_page(
    scores: pa.Table,
    video_id: str,
    film: Film,
    saved: SavedMap | None = None,
    summary: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    categories: Mapping[str, str] | None = None,
    home: str | None = None,
) -> str:
    """The page as HTML text.

    scores: rows of schemas.SCORES, each video once, ``video_id`` among them. saved: its map. summary, config: as
    ``report_page``. about: what is known of the video: title, creator_id, product_title. categories: product_id ->
    category. home: address of the catalogue's page as seen from this one.
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
        "evidence": evidence,
        "verdicts": verdicts(evidence) if evidence else [],
        "home": home,
        "made_at": datetime.datetime.now(datetime.UTC),
    }
    if row["status"] != Status.FAILED:
        moments = moments_of(row, rate, saved)
        page |= {
            "view": view_of(row, moments, saved, film, "the video"),
            "measures": measures_of(scores, row, rate, categories or {}, category),
            "hook": moments.hook(),
            "missed": moments.missed(),
            "suggestions": moments.suggestions(),
            "localisation": _localisation(row, int(config.get("min_inliers") or 0)),
        }
    templates = environment(rank=rank_text, in_words=in_words)
    return templates.get_template("video.html").render(page)


def measures_of(
    scores: pa.Table, row: Mapping[str, Any], rate: float, categories: Mapping[str, str], category: str | None
) -> list[dict[str, Any]]:
    """The video's figures and their percentiles, among all videos and among those of its category."""
    alike = pa.array([product for product, its in categories.items() if its == category], pa.string())
    peers = scores.filter(pc.is_in(scores["product_id"], alike)) if category else scores.slice(0, 0)
    found = []
    for name, (title, text) in MEASURES.items():
        own = hook(np.asarray(row["e_per_second"]), rate) if name == "hook" else row[name]
        every, near = (_values(table, name, rate) for table in (scores, peers))
        found.append(
            {
                "name": title,
                "text": text(own),
                "rank": percentile(every, own),
                "n": len(every),
                "category_rank": percentile(near, own),
                "category_n": len(near),
            }
        )
    return found


def _values(scores: pa.Table, name: str, rate: float) -> np.ndarray:
    if name != "hook":
        return scores[name].drop_null().to_numpy()
    return hooks(scores["e_per_second"], rate)


def hooks(e_per_second: pa.ChunkedArray, samples_per_second: float) -> np.ndarray:
    """``Moments.hook`` of every video that has one."""
    lists = e_per_second.drop_null().combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    e = lists.flatten().to_numpy(zero_copy_only=False).astype(float)
    video = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(e)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    opening = round(HOOK_S * samples_per_second)
    means = np.bincount(video, e, len(lengths)) / np.maximum(lengths, 1)
    first = np.bincount(video, np.where(place < opening, e, 0), len(lengths)) / opening
    known = (lengths > opening) & (means > 0)
    return first[known] / means[known]


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
