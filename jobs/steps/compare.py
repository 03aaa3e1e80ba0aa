"""What jobs.compare does."""

from catalog import storage
from catalog.errors import Refused
from jobs.command import DONE, print_config, resolved
from jobs.compare import CompareConfig
from jobs.steps.pages import PageMaker, check_limits, check_page
from jobs.steps.scored import ScoredFolder
from views.run_comparison import ScoringRun, runs_page


def main(config: CompareConfig) -> int:
    print_config(resolved(config))
    check_limits(config.limits)
    output = storage.absolute(config.output)
    check_page(output)
    scored = ScoredFolder.read(config.scores)
    if config.creatives is not None and config.other is None:
        with PageMaker(scored, config.videos, None, config.limits) as maker:
            page = maker.creatives(*config.creatives)
    elif config.other is not None and config.creatives is None:
        page = runs_page(_run(scored), _run(ScoredFolder.read(config.other)))
    else:
        raise Refused("give --creatives with two video_ids, or --other with another folder of scores, one of the two")
    storage.write_bytes_atomically(output, page.encode())
    print(f"comparison: {output}")
    return DONE


def _run(scored: ScoredFolder) -> ScoringRun:
    return ScoringRun(scored.uri, scored.scores, scored.settings)
