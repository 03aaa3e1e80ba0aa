"""What jobs.report does."""

from catalog import storage
from catalog.errors import Refused
from jobs.command import DONE, print_config, resolved
from jobs.report import ReportConfig
from jobs.steps.scored import ScoredFolder
from views.report import report_page


def main(config: ReportConfig) -> int:
    print_config(resolved(config))
    output = storage.absolute(config.output)
    _check_output(output)
    scored = ScoredFolder.read(config.scores)
    videos = None if config.videos is None else scored.videos(config.videos)
    page = report_page(scored.scores, scored.summary, scored.settings, videos)
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
