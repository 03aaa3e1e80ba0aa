"""What jobs.report does."""

import json
from typing import Any

import pyarrow as pa

from catalog import storage
from catalog.errors import Refused
from catalog.tables import read_videos
from jobs.command import DONE, print_config, resolved
from jobs.report import ReportConfig
from scoring.output import read_scores
from views.report import report_page


def main(config: ReportConfig) -> int:
    print_config(resolved(config))
    output = storage.absolute(config.output)
    _check_output(output)
    scores = _scores(config.scores)
    videos = None if config.videos is None else _videos(config.videos, scores)
    summary = _json(config.scores, "run.json")
    settings = _json(config.scores, "config.json") if summary is None else summary.get("config")
    page = report_page(scores, summary, settings, videos)
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


def _scores(uri: str) -> pa.Table:
    try:
        scores = read_scores(uri)
    except (OSError, pa.ArrowException) as error:
        raise Refused(f"--scores {uri} cannot be read: {error}; give the --output folder of jobs.score") from error
    if scores["video_id"].null_count or scores["status"].null_count:
        raise Refused(
            f"--scores {uri} has rows without video_id or status, so they are no scores; "
            "give the --output folder of jobs.score"
        )
    return scores


def _videos(uri: str, scores: pa.Table) -> pa.Table:
    videos = read_videos(uri, required=("video_id",))
    if scores.num_rows and set(videos["video_id"].to_pylist()).isdisjoint(scores["video_id"].to_pylist()):
        raise Refused(f"--videos {uri} holds none of the videos that were scored; give the table that was")
    return videos


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
