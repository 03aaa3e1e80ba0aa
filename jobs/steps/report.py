"""What jobs.report does."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from catalog import storage
from catalog.errors import Refused, VideoError
from catalog.isolation import IsolatedWorker
from catalog.sampling import SamplingConfig
from catalog.schemas import Status
from jobs.command import DONE, print_config, resolved
from jobs.report import ReportConfig
from jobs.steps.scored import ScoredFolder
from scoring.output import OutputFolder
from scoring.settings import VideoLimits
from views.maps import SavedMap
from views.report import once_each, report_page
from views.video_page import Film, video_page


def main(config: ReportConfig) -> int:
    print_config(resolved(config))
    output = storage.absolute(config.output)
    _check_output(output)
    scored = ScoredFolder.read(config.scores)
    videos, products = scored.videos(config.videos), scored.products(config.products)
    if config.video is None:
        page = report_page(scored.scores, scored.summary, scored.settings, videos)
    else:
        page = _page_of(config.video, scored, videos, products, config.limits)
    storage.write_bytes_atomically(output, page.encode())
    print(f"report: {output}")
    return DONE


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


def _page_of(
    video_id: str, scored: ScoredFolder, videos: pa.Table | None, products: pa.Table | None, limits: VideoLimits
) -> str:
    scores = once_each(scored.scores)
    row = _row(scores, "video_id", video_id)
    if row is None:
        raise Refused(f"--video {video_id}: {scored.uri} has no scores of a video of that id")
    saved = film = None
    if row["status"] != Status.FAILED:
        saved = saved_map(scored, video_id)
    video = _row(videos, "video_id", video_id)
    if row["status"] == Status.FAILED:
        film = Film()
    elif video is None or not video["video_uri"]:
        film = Film(problem="no table says where it is; give the one that was scored with --videos")
    else:
        film = _film(video["video_uri"], scored.sampling, limits)
    product = _row(products, "product_id", row["product_id"])
    about = dict(video or {}) | {"product_title": (product or {}).get("title")}
    categories = None
    if products is not None:
        named = zip(products["product_id"].to_pylist(), products["category"].to_pylist(), strict=True)
        categories = {product_id: category for product_id, category in named if category}
    return video_page(scores, video_id, film, saved, scored.summary, scored.settings, about, categories)


def _row(table: pa.Table | None, key: str, value: str | None) -> dict[str, Any] | None:
    if table is None or value is None:
        return None
    found = table.filter(pc.equal(table[key], value)).slice(0, 1).to_pylist()
    return found[0] if found else None


def saved_map(scored: ScoredFolder, video_id: str) -> SavedMap | None:
    folder = OutputFolder(scored.uri)
    index = folder.rows()
    part = _row(index, "video_id", video_id)
    maps = folder.maps(part["part"], [video_id]) if part else []
    return SavedMap.of_row(maps[0], scored.sampling.sample_fps) if maps else None


def _film(uri: str, sampling: SamplingConfig, limits: VideoLimits) -> Film:
    init = (sampling.max_duration, int(sampling.max_megabytes * 1e6))
    memory = int(limits.video_memory_mb * 2**20)
    with IsolatedWorker("views.preview:Previewer", init, memory_limit_bytes=memory) as child:
        try:
            return Film(child.call(uri, limits.video_timeout))
        except VideoError as error:
            return Film(problem=error.message)
