"""What jobs.report does."""

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
from jobs.command import DONE, ProgressLog, console, print_config, resolved
from jobs.report import ReportConfig
from jobs.steps.scored import ScoredFolder
from scoring.output import OutputFolder
from views.figures import mean_maps, space_figure, time_figure
from views.names import file_stem
from views.preview import Thumbnail
from views.report import ends, once_each, ranked, report_page
from views.video_page import Film, video_page


def main(config: ReportConfig) -> int:
    print_config(resolved(config))
    if config.pages < 0:
        raise Refused(f"--pages is {config.pages}, expected at least 0")
    check_positive({"--video-timeout": config.limits.video_timeout, "--video-memory-mb": config.limits.video_memory_mb})
    output = storage.absolute(config.output)
    if config.figures is not None:
        storage.check_writable(storage.absolute(config.figures))
    _check_output(output)
    scored = ScoredFolder.read(config.scores)
    with Reporter(config, scored) as reporter:
        page = reporter.catalogue(output, config.pages) if config.video is None else reporter.page_of(config.video)
    storage.write_bytes_atomically(output, page.encode())
    print(f"report: {output}")
    if config.figures is not None:
        _write_figures(scored, storage.absolute(config.figures))
    return DONE


def _write_figures(scored: ScoredFolder, folder: str) -> None:
    scores = once_each(scored.scores)
    figures = {"time": time_figure(scores, scored.sampling.sample_fps)}
    means = mean_maps(OutputFolder(scored.uri).maps(), scores)
    if means.videos:
        aspect = pc.approximate_median(pc.divide(pc.cast(scores["height"], "double"), scores["width"])).as_py()
        figures["space"] = space_figure(means, aspect or 1.0)
    else:
        console.print("no maps of videos with a product were saved, so there is no figure over space; --save-maps does")
    for name, files in figures.items():
        for kind, data in (files or {}).items():
            storage.write_bytes_atomically(f"{folder}/{name}.{kind}", data)
    written = sorted(name for name, files in figures.items() if files)
    console.print(f"figures: {folder}    {', '.join(written) or 'none: no video has a PE'}")


def _check_output(uri: str) -> None:
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


class Reporter:
    """Makes the pages of one scored folder; videos are read in a supervised child process. Use it in ``with``."""

    def __init__(self, config: ReportConfig, scored: ScoredFolder):
        self.scored, self.limits = scored, config.limits
        self.scores = once_each(scored.scores)
        self.videos, self.products = scored.videos(config.videos), scored.products(config.products)
        sampling = scored.sampling
        self.child = IsolatedWorker(
            "views.preview:Previewer",
            (sampling.max_duration, int(sampling.max_megabytes * 1e6)),
            memory_limit_bytes=int(config.limits.video_memory_mb * 2**20),
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *raised: object) -> None:
        self.child.close()

    def catalogue(self, output: str, pages: int) -> str:
        """The catalogue's page; writes the pages that it links to beside ``output``."""
        order = ranked(self.scores)
        links = self._write_pages(_outermost(order, pages), output) if pages else {}
        outermost = [row for rows in ends(order).values() for row in rows]
        return report_page(
            self.scores, self.scored.summary, self.scored.settings, self.videos, self.products,
            self._thumbnails(outermost), links,
        )  # fmt: skip

    def page_of(self, video_id: str) -> str:
        """Of one video. Raises Refused where it was not scored."""
        row = _row(self.scores, "video_id", video_id)
        if row is None:
            raise Refused(f"--video {video_id}: {self.scored.uri} has no scores of a video of that id")
        video = _row(self.videos, "video_id", video_id) or {}
        is_failed = row["status"] == Status.FAILED
        product = _row(self.products, "product_id", row["product_id"]) or {}
        return video_page(
            self.scores, video_id,
            Film() if is_failed else self._film(video.get("video_uri")),
            None if is_failed else self.scored.saved_map(video_id),
            self.scored.summary, self.scored.settings,
            video | {"product_title": product.get("title")},
            self._categories(),
        )  # fmt: skip

    def _write_pages(self, video_ids: Sequence[str], output: str) -> dict[str, str]:
        """video_id -> its page's address as seen from ``output``."""
        folder, _, name = output.rpartition("/")
        beside = f"{name.removesuffix('.html')}-videos"
        progress = ProgressLog("pages", len(video_ids))
        links = {}
        for done, video_id in enumerate(video_ids, 1):
            file = f"{beside}/{file_stem(video_id)}.html"
            storage.write_bytes_atomically(f"{folder}/{file}", self.page_of(video_id).encode())
            links[video_id] = quote(file)
            progress.update(done)
        progress.close()
        return links

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

    def _film(self, uri: str | None) -> Film:
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


def _outermost(order: pa.Table, n: int) -> list[str]:
    """Ids of the n located videos of highest PE and of the n of lowest, each once."""
    ids = order.filter(pc.equal(order["status"], Status.OK))["video_id"].to_pylist()
    return list(dict.fromkeys([*ids[:n], *ids[::-1][:n]]))


def _row(table: pa.Table | None, key: str, value: str | None) -> dict[str, Any] | None:
    if table is None or value is None:
        return None
    found = table.filter(pc.equal(table[key], value)).slice(0, 1).to_pylist()
    return found[0] if found else None
