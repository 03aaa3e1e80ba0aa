"""What MLflow keeps of a scoring run: its course, figures, page, tables and plots, and where it comes from."""

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from catalog.schemas import Status
from jobs.command import console, resolved
from jobs.score import ScoreConfig
from jobs.steps.pages import PageMaker, figures_over
from jobs.steps.scored import ScoredFolder
from scoring.evidence import verdicts
from scoring.settings import VideoLimits
from scoring.tally import Tally
from tracking import registry
from tracking.runs import Run, table_name
from views.report import once_each, ranked

MIN_GAP_S, GAP_SHARE = 5.0, 0.005
"""between two points of the course: hours of a job make some thousand points"""
MAX_PAGE_ROWS = 100_000
"""up to which a page was measured; reading and drawing them takes some ten seconds"""
MAX_MAPS = 1000
"""that the figure over space is the mean of: a few milliseconds each, and any will do"""
TABLE_ROWS = 100
BESIDE_IT = ("max_prepare_actors", "product_cache", "retry_failed", "max_failed_fraction", "limit", "dry_run")


def params_of(config: ScoreConfig) -> dict[str, Any]:
    """The settings that decide what scores come out; run.json has all."""
    return {name: value for name, value in resolved(config).items() if name not in BESIDE_IT}


def title_of(videos: str, model: registry.StoredModel) -> str:
    return f"{table_name(videos)}, {model.name}"


def tags_of(videos: str, model: registry.StoredModel, output: str) -> dict[str, str]:
    """By which a stranger finds the run. videos: the table."""
    trained = {"training_run": model.training_run} if model.training_run else {}
    return {
        "catalogue": table_name(videos),
        "model_uri": model.uri,
        "model_version": model.version,
        "output": output,
    } | trained


class Course:
    """The job against its seconds, as MLflow's charts show it."""

    def __init__(self, run: Run):
        self.run = run
        self.seconds, self.done = 0.0, 0

    def follow(self, tally: Tally, cores: float, at_end: bool = False) -> None:
        """Adds a point, unless the last was a moment ago."""
        seconds = tally.wall_seconds
        since = seconds - self.seconds
        is_soon = since < max(MIN_GAP_S, GAP_SHARE * seconds)
        if tally.done == self.done or (is_soon and not at_end):
            return
        summary = tally.summary(cores)
        figures = {
            "videos_done": tally.done,
            "videos_failed": tally.statuses[Status.FAILED],
            "videos_per_minute": 60 * (tally.done - self.done) / since,
            "core_seconds_per_video_minute": summary["core_seconds_per_video_minute"],
            "efficiency": summary["efficiency"],
        }
        self.seconds, self.done = seconds, tally.done
        self.run.metrics({f"progress/{k}": v for k, v in figures.items() if v is not None}, step=round(seconds))


def record(run: Run, config: ScoreConfig, model: registry.StoredModel, uri: str, summary: Mapping[str, Any]) -> None:
    """Log what the finished job into the folder ``uri`` came to."""
    if run.run_id is None:
        return
    run.dictionary(dict(summary), "run.json")
    gains = (summary["faithfulness"] or {}).get("gains", ())
    known = [gain for gain in gains if gain["mean"] is not None]
    run.metrics({f"faithfulness/{g['what']}/{g['infill']}/gain_over_{g['over']}": g["mean"] for g in known})
    run.description(describe(config, model, uri, summary))
    if model.logged_model is not None:
        run.model_input(model.logged_model)
    if card := registry.card_of(model):
        run.text(card, "model_card.md")
    if summary["rows"] > MAX_PAGE_ROWS:
        console.print(f"MLflow gets no page of {summary['rows']:,} videos; python -m jobs.report makes one")
        return
    try:
        _log_pictures(run, ScoredFolder.read(uri), config.limits)
    except Exception as error:  # the scores are there, whatever happens to their pictures
        run.failed("making the report", error)


def describe(config: ScoreConfig, model: registry.StoredModel, uri: str, summary: Mapping[str, Any]) -> str:
    """The run's description in Markdown."""
    counts = ", ".join(f"{n:,} {status}" for status, n in summary["videos"].items() if n)
    lines = [
        f"**{summary['rows']:,} videos of {table_name(config.videos)}**: {counts}.",
        f"- Scored with {model.link}.",
        "- Look at `report.html` among the artifacts; `tables/` and `plots/` hold its parts, `run.json` all figures.",
        f"- Scores: `{uri}/scores`. A video's page: `python -m jobs.serve --scores {uri}`.",
    ]
    if summary["core_seconds_per_video_minute"] is not None:
        lines.append(f"- {summary['core_seconds_per_video_minute']:.2f} core-seconds a minute of video.")
    if summary["faithfulness"]:
        lines += ["", "**Can the maps be trusted?**", *verdict_lines(summary["faithfulness"])]
    return "\n".join(lines)


def verdict_lines(evidence: Mapping[str, Any]) -> list[str]:
    """Of the maps, as Markdown."""
    return [f"- {verdict}" for verdict in verdicts(evidence)]


def _log_pictures(run: Run, scored: ScoredFolder, limits: VideoLimits) -> None:
    scores = once_each(scored.scores)
    run.metrics(_means(scores))
    with PageMaker(scored, None, None, limits) as maker:
        run.text(maker.catalogue(), "report.html")
    order = ranked(scores)
    located = order.filter(pc.equal(order["status"], Status.OK.value))
    ends = {"highest_pe": located, "lowest_pe": located.sort_by("pe_score")}
    failed = order.filter(pc.equal(order["status"], Status.FAILED.value))
    for name, table in (ends | {"failed": failed}).items():
        if table.num_rows:
            run.text(_csv(table.slice(0, TABLE_ROWS)), f"tables/{name}.csv")
    for name, files in figures_over(scored, MAX_MAPS).items():
        run.file(files["png"], f"plots/{name}.png")


def _means(scores: pa.Table) -> dict[str, float]:
    """Of the catalogue, over the videos that have the score."""
    names = ("pe_score", "e_score", "p_score", "e_on_product", "predicted_engagement")
    means = {name: pc.mean(scores[name]).as_py() for name in names}
    return {f"scores/mean_{name}": value for name, value in means.items() if value is not None}


def _csv(table: pa.Table) -> str:
    plain = [field.name for field in table.schema if not pa.types.is_list(field.type)]
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table.select(plain), sink)
    return sink.getvalue().decode()
