"""Two videos of one scoring run side by side as a self-contained HTML page."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from views.maps import SavedMap
from views.numbers import rank_text
from views.page import environment
from views.timeline import PER_SECOND
from views.video_page import measures_of
from views.viewer import Film, moments_of, view_of


def creatives_page(
    scores: pa.Table,
    video_ids: Sequence[str],
    films: Sequence[Film],
    maps: Sequence[SavedMap | None],
    titles: Sequence[str | None],
    config: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML text. scores: as ``video_page``; two of each else, of videos that could be looked at."""
    rate = float((config or {}).get("sample_fps") or 1.0)
    rows = [scores.filter(pc.equal(scores["video_id"], video_id)).to_pylist()[0] for video_id in video_ids]
    tops = {name: max((max(row[name]) for row in rows if row[name]), default=0) or 1 for name in PER_SECOND}
    sides = []
    for name, row, film, saved, title in zip(("video A", "video B"), rows, films, maps, titles, strict=True):
        moments = moments_of(row, rate, saved)
        side = {"id": row["video_id"], "title": title, "status": row["status"], "missed": moments.missed()}
        sides.append(side | {"view": view_of(row, moments, saved, film, name, tops)})
    measures = zip(*(measures_of(scores, row, rate, {}, None) for row in rows), strict=True)
    page = environment(rank=rank_text).get_template("creatives.html")
    return page.render(sides=sides, measures=list(measures), made_at=datetime.datetime.now(datetime.UTC))
