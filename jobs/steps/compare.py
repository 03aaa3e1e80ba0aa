"""What jobs.compare does."""

import io
import tempfile
from pathlib import Path

import pandas as pd
from rich.table import Table

from analysis.drift import drift
from catalog import storage
from catalog.errors import Refused
from jobs.command import DONE, console, print_config, resolved
from jobs.compare import CompareConfig
from jobs.steps.pages import PageMaker, check_limits, check_page
from jobs.steps.scored import ScoredFolder
from tracking.names import COMPARE_RUNS
from tracking.runs import open_run
from views.numbers import figure_text
from views.run_comparison import COLUMNS, GROUPS, ScoringRun, figures, grouped, joined, runs_page


def main(config: CompareConfig) -> int:
    print_config(resolved(config))
    check_limits(config.limits)
    output = storage.absolute(config.output)
    check_page(output)
    if config.tables is not None:
        if config.other is None:
            raise Refused("--tables needs --other: two videos side by side have no tables")
        storage.check_writable(storage.absolute(config.tables))
    if (config.creatives is None) == (config.other is None):
        raise Refused("give --creatives with two video_ids, or --other with another folder of scores, one of the two")
    if config.other is not None:
        first, second = (ScoredFolder.read(uri, COLUMNS) for uri in (config.scores, config.other))
        _compare_runs(config, first, second, output)
    elif config.creatives is not None:
        with PageMaker(ScoredFolder.read(config.scores), config.videos, None, config.limits) as maker:
            page = maker.creatives(*config.creatives)
        storage.write_bytes_atomically(output, page.encode())
    print(f"comparison: {output}")
    return DONE


def _compare_runs(config: CompareConfig, first: ScoredFolder, second: ScoredFolder, output: str) -> None:
    both = joined(first.scores, second.scores, second.videos(config.videos), second.products(config.products))
    page = runs_page(_run(first), _run(second), both)
    storage.write_bytes_atomically(output, page.encode())
    moved, tables = drift(both), _tables(both)
    if config.tables is not None:
        for name, content in tables.items():
            storage.write_bytes_atomically(f"{storage.absolute(config.tables)}/{name}", content)
        console.print(f"tables: {storage.absolute(config.tables)}")
    _print_drift(moved)
    with (
        open_run(COMPARE_RUNS, f"compare {len(both)} videos", {"first": first.uri, "second": second.uri}) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        scores = moved.to_dict("records")
        known = {f"{what}/{score['score']}": score[what] for score in scores for what in ("spearman", "psi")}
        run.metrics({"videos": len(both)} | {name: value for name, value in known.items() if pd.notna(value)})
        for name, content in (tables | {"comparison.html": page.encode()}).items():
            path = Path(folder, name)
            path.write_bytes(content)
            run.artifact(path)
        for name, figure in figures(both).items():
            run.figure(figure, f"plots/{name}.png")


def _tables(both: pd.DataFrame) -> dict[str, bytes]:
    """File name -> content."""
    videos = io.BytesIO()
    both.assign(rank_change=both["rank_second"] - both["rank_first"]).to_parquet(videos, index=False)
    groups = {f"{GROUPS[label]}.csv": table.to_csv(index=False).encode() for label, table in grouped(both).items()}
    return {"drift.csv": drift(both).to_csv(index=False).encode(), "videos.parquet": videos.getvalue(), **groups}


def _print_drift(moved: pd.DataFrame) -> None:
    table = Table(title="how far each score has moved")
    for name in moved.columns:
        table.add_column(name, justify="left" if name == "score" else "right")
    for row in moved.astype(object).where(moved.notna(), None).to_dict("records"):
        table.add_row(*(value if isinstance(value, str) else figure_text(value) for value in row.values()))
    console.print(table)


def _run(scored: ScoredFolder) -> ScoringRun:
    return ScoringRun(scored.uri, scored.scores, scored.settings)
