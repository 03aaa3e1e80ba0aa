"""What jobs on a finished scoring job's folder read."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from catalog import storage
from catalog.errors import Refused
from catalog.sampling import SamplingConfig
from catalog.schemas import SCORES, Status
from catalog.tables import read_products, read_videos
from jobs.command import console
from scoring.output import OutputFolder, read_scores
from views.maps import SavedMap

OF_EVERY_VIDEO = ("seconds", "e_score", "e_per_second")
OF_PRODUCTS = ("pe_score", "p_score", "pe_per_second", "p_per_second")
"""what rows have whose video could be looked at, and of those the ones with a product"""


@dataclasses.dataclass(frozen=True)
class ScoredFolder:
    """The output folder of jobs.score."""

    uri: str
    scores: pa.Table
    """of schemas.SCORES, all or some columns"""
    summary: dict[str, Any] | None
    """run.json; None: the job has not finished"""
    settings: dict[str, Any]
    """flag -> value of the scoring job; empty where they were not kept"""

    @classmethod
    def read(cls, uri: str, columns: Sequence[str] = SCORES.names) -> "ScoredFolder":
        """With these columns of the scores. Raises Refused where it holds no scores or cannot be read."""
        try:
            scores = read_scores(uri, columns)
        except (OSError, pa.ArrowException) as error:
            raise Refused(f"--scores {uri} cannot be read: {error}; give the --output folder of jobs.score") from error
        if scores["video_id"].null_count or scores["status"].null_count:
            raise Refused(
                f"--scores {uri} has rows without video_id or status, so they are no scores; "
                "give the --output folder of jobs.score"
            )
        _check_whole(uri, scores)
        summary = _json(uri, "run.json")
        settings = _json(uri, "config.json") if summary is None else summary.get("config")
        return cls(storage.absolute(uri), scores, summary, settings or {})

    @property
    def sampling(self) -> SamplingConfig:
        """How the videos were sampled; the defaults where that was not kept."""
        names = {field.name for field in dataclasses.fields(SamplingConfig)}
        return SamplingConfig(**{name: value for name, value in self.settings.items() if name in names})

    def videos(self, uri: str | None) -> pa.Table | None:
        """The videos table that was scored: ``uri``, else the one that jobs.score was given, None where that cannot be
        read. Raises Refused where ``uri`` cannot be read or is another table."""
        if uri is None:
            return self._as_scored("videos", read_videos, "video_id")
        videos = read_videos(uri, required=("video_id",))
        ids = self.scores["video_id"].to_pylist()
        if ids and set(videos["video_id"].to_pylist()).isdisjoint(ids):
            raise Refused(f"--videos {uri} holds none of the videos that were scored; give the table that was")
        return videos

    def products(self, uri: str | None) -> pa.Table | None:
        """The products table, as ``videos``."""
        if uri is None:
            return self._as_scored("products", read_products, "product_id")
        return read_products(uri, required=("product_id",))

    def saved_map(self, video_id: str) -> SavedMap | None:
        """None where none was saved."""
        part = self.parts.get(video_id)
        row = next(OutputFolder(self.uri).maps(part, [video_id]), None) if part else None
        return None if row is None else SavedMap.of_row(row, self.sampling.sample_fps)

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """video_id -> the file that holds its scores"""
        rows = OutputFolder(self.uri).rows()
        return dict(zip(rows["video_id"].to_pylist(), rows["part"].to_pylist(), strict=True))

    def _as_scored(self, name: str, read: Callable[..., pa.Table], key: str) -> pa.Table | None:
        uri = self.settings.get(name)
        try:
            return None if uri is None else read(uri, required=(key,))
        except (Refused, OSError) as problem:
            console.print(f"the {name} table cannot be read, so the page goes without it: {problem}")
            return None


def _check_whole(uri: str, scores: pa.Table) -> None:
    """Refused where rows lack what every row of their status has: another version wrote them."""
    seen = scores.filter(pc.not_equal(scores["status"], Status.FAILED.value))
    with_product = seen.filter(pc.not_equal(seen["status"], Status.NO_PRODUCT.value))
    for rows, names in ((seen, OF_EVERY_VIDEO), (with_product, OF_PRODUCTS)):
        lacking = [name for name in names if name in rows.column_names and rows[name].null_count]
        if lacking:
            raise Refused(
                f"--scores {uri}: {rows[lacking[0]].null_count} rows have no {', '.join(lacking)}, so an older version "
                "of jobs.score wrote them, or another program; score the videos again, into another folder"
            )


def _json(folder: str, name: str) -> dict[str, Any] | None:
    uri = f"{storage.absolute(folder)}/{name}"
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Refused(f"{uri} cannot be read: {error}; the same jobs.score command writes it anew") from error
    if not isinstance(content, dict):
        raise Refused(f"{uri} holds no JSON object; the same jobs.score command writes it anew")
    return content
