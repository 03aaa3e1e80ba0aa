"""Pages of a scored folder and its videos, for the jobs that write or serve them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import storage
from catalog.errors import Refused, VideoError, check_positive
from catalog.isolation import IsolatedWorker
from catalog.schemas import Status
from jobs.command import ProgressLog, console
from jobs.steps.scored import ScoredFolder
from scoring.output import OutputFolder
from scoring.settings import VideoLimits
from views.creative_comparison import creatives_page
from views.figures import mean_maps, space_figure, time_figure
from views.names import file_stem
from views.preview import Thumbnail
from views.report import ends, once_each, ranked, report_page
from views.video_page import video_page
from views.viewer import Film


def check_limits(limits: VideoLimits) -> None:
    """Refused where they make no sense."""
    check_positive({"--video-timeout": limits.video_timeout, "--video-memory-mb": limits.video_memory_mb})


def check_page(uri: str) -> None:
    """Refused where no file can be written there."""
    folder = uri.rpartition("/")[0] or "/"
    storage.check_writable(folder)
    try:
        is_folder = storage.files_in(uri) is not None
    except FileNotFoundError:
        return
    except OSError as error:
        why = storage.reason(error)
        raise Refused(f"--output {uri} cannot be written: {why}; name another file") from error
    if is_folder:
        raise Refused(f"--output {uri} is a folder; name the file too, such as {uri.rstrip('/')}/report.html")


def figures_over(scored: ScoredFolder, max_maps: int | None = None) -> dict[str, dict[str, bytes]]:
    """``time`` where a video has a PE and ``space``, over so many maps, where any were saved: format -> file."""
    scores = once_each(scored.scores)
    time = time_figure(scores, scored.sampling.sample_fps)
    means = mean_maps(itertools.islice(OutputFolder(scored.uri).maps(), max_maps), scores)
    aspect = pc.approximate_median(pc.divide(pc.cast(scores["height"], "double"), scores["width"])).as_py()
    space = space_figure(means, aspect or 1.0) if means.videos else None
    return {name: files for name, files in (("time", time), ("space", space)) if files}


class PageMaker:
    """Makes the pages of one scored folder; videos are read in a supervised child process. Use it in ``with``."""

    def __init__(self, scored: ScoredFolder, videos: str | None, products: str | None, limits: VideoLimits):
        """videos, products: as ``ScoredFolder`` takes them."""
        self.scored, self.limits = scored, limits
        self.scores = once_each(scored.scores)
        self.videos, self.products = scored.videos(videos), scored.products(products)
        sampling = scored.sampling
        self.child = IsolatedWorker(
            "views.preview:Previewer",
            (sampling.max_duration, int(sampling.max_megabytes * 1e6)),
            memory_limit_bytes=int(limits.video_memory_mb * 2**20),
        )

    def __enter__(self) -> "PageMaker":
        return self

    def __exit__(self, *raised: object) -> None:
        self.child.close()

    def catalogue(self, links: Mapping[str, str] | None = None, prefix: str | None = None) -> str:
        """The catalogue's page; links, prefix: as ``report_page``."""
        outermost = [row for rows in ends(ranked(self.scores)).values() for row in rows]
        return report_page(
            self.scores, self.scored.summary, self.scored.settings, self.videos, self.products,
            self._thumbnails(outermost), links, prefix,
        )  # fmt: skip

    def page_of(self, video_id: str, home: str | None = None) -> str:
        """Of one video; home: address of the catalogue's page. Raises Refused where it was not scored."""
        row = self._scored_row(video_id)
        video = _row(self.videos, "video_id", video_id) or {}
        is_failed = row["status"] == Status.FAILED
        product = _row(self.products, "product_id", row["product_id"]) or {}
        return video_page(
            self.scores, video_id,
            Film() if is_failed else self._film(video),
            None if is_failed else self.scored.saved_map(video_id),
            self.scored.summary, self.scored.settings,
            video | {"product_title": product.get("title")},
            self._categories(),
            home,
        )  # fmt: skip

    def creatives(self, *video_ids: str) -> str:
        """Two videos side by side. Raises Refused where one was not scored or failed."""
        for video_id in video_ids:
            row = self._scored_row(video_id)
            if row["status"] == Status.FAILED:
                raise Refused(f"{video_id} failed ({row['error_code']}: {row['error_message']}): nothing to compare")
        videos = [_row(self.videos, "video_id", video_id) or {} for video_id in video_ids]
        return creatives_page(
            self.scores, video_ids, [self._film(video) for video in videos],
            [self.scored.saved_map(video_id) for video_id in video_ids],
            [video.get("title") for video in videos], self.scored.settings,
        )  # fmt: skip

    def _scored_row(self, video_id: str) -> dict[str, Any]:
        row = _row(self.scores, "video_id", video_id)
        if row is None:
            raise Refused(f"{video_id}: {self.scored.uri} has no scores of a video of that id")
        return row

    def write_pages(self, n: int, output: str) -> dict[str, str]:
        """The pages of the n located videos of highest PE and of the n of lowest, in a folder beside ``output``;
        video_id -> its page's address as seen from there."""
        folder, _, name = output.rpartition("/")
        beside = f"{name.removesuffix('.html')}-videos"
        video_ids = self._outermost(n)
        progress = ProgressLog("pages", len(video_ids))
        links = {}
        for done, video_id in enumerate(video_ids, 1):
            file = f"{beside}/{file_stem(video_id)}.html"
            storage.write_bytes_atomically(f"{folder}/{file}", self.page_of(video_id, f"../{quote(name)}").encode())
            links[video_id] = quote(file)
            progress.update(done)
        progress.close()
        return links

    def _outermost(self, n: int) -> list[str]:
        order = ranked(self.scores)
        ids = order.filter(pc.equal(order["status"], Status.OK))["video_id"].to_pylist()
        return list(dict.fromkeys([*ids[:n], *ids[::-1][:n]]))

    def _thumbnails(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
        """JPEGs of where PE is highest, of those videos that can be read."""
        made, problems = {}, []
        for row in rows:
            video = _row(self.videos, "video_id", row["video_id"]) or {}
            if not video.get("video_uri") or not row["pe_per_second"]:
                continue
            at_s = float(np.argmax(row["pe_per_second"])) / self.scored.sampling.sample_fps
            wanted = Thumbnail(video["video_uri"], at_s, self.scored.saved_map(row["video_id"]))
            try:
                made[row["video_id"]] = self.child.call(wanted, self.limits.video_timeout)
            except VideoError as error:
                problems.append(error.message)
        if problems:
            console.print(f"{len(problems)} videos have no thumbnail, such as: {problems[0]}")
        return made

    def _film(self, video: Mapping[str, Any]) -> Film:
        """video: its row of the videos table, empty where there is none."""
        uri = video.get("video_uri")
        if not uri:
            return Film(problem="no table says where it is; give the one that was scored with --videos")
        try:
            return Film(self.child.call(uri, self.limits.video_timeout))
        except VideoError as error:
            return Film(problem=error.message)

    def _categories(self) -> dict[str, str]:
        if self.products is None:
            return {}
        named = zip(self.products["product_id"].to_pylist(), self.products["category"].to_pylist(), strict=True)
        return {product_id: category for product_id, category in named if category}


def _row(table: pa.Table | None, key: str, value: str | None) -> dict[str, Any] | None:
    if table is None or value is None:
        return None
    found = table.filter(pc.equal(table[key], value)).slice(0, 1).to_pylist()
    return found[0] if found else None
