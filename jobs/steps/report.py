"""What jobs.report does."""

from catalog import storage
from catalog.errors import Refused
from jobs.command import DONE, console, print_config, resolved
from jobs.report import ReportConfig
from jobs.steps.pages import PageMaker, check_limits, check_page, figures_over
from jobs.steps.scored import ScoredFolder


def main(config: ReportConfig) -> int:
    print_config(resolved(config))
    if config.pages < 0:
        raise Refused(f"--pages is {config.pages}, expected at least 0")
    check_limits(config.limits)
    output = storage.absolute(config.output)
    if config.figures is not None:
        storage.check_writable(storage.absolute(config.figures))
    check_page(output)
    scored = ScoredFolder.read(config.scores)
    with PageMaker(scored, config.videos, config.products, config.limits) as maker:
        if config.video is not None:
            page = maker.page_of(config.video)
        else:
            page = maker.catalogue(maker.write_pages(config.pages, output) if config.pages else {})
    storage.write_bytes_atomically(output, page.encode())
    print(f"report: {output}")
    if config.figures is not None:
        _write_figures(scored, storage.absolute(config.figures))
    return DONE


def _write_figures(scored: ScoredFolder, folder: str) -> None:
    figures = figures_over(scored)
    if "space" not in figures:
        console.print("no maps of videos with a product were saved, so there is no figure over space; --save-maps does")
    for name, files in figures.items():
        for kind, data in files.items():
            storage.write_bytes_atomically(f"{folder}/{name}.{kind}", data)
    console.print(f"figures: {folder}    {', '.join(sorted(figures)) or 'none: no video has a PE'}")
