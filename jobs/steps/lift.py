"""What jobs.lift does."""

import dataclasses
import datetime
import io
import json
import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from analysis.panel import Mended, Panel, daily_panel
from analysis.rebuild import REBUILDS
from analysis.sample import sample_of
from analysis.stage_one import StageOne, joined, stage_one
from analysis.study import Inputs, Study, study
from analysis.treatment import Treatment, treatment
from catalog import storage
from catalog.errors import Refused, check_positive
from catalog.schemas import LIFTS, STAGE_TWO
from catalog.tables import read_products, read_sales, read_videos
from jobs.command import DONE, ProgressLog, StallWatch, console, print_config, ray_cluster, resolved
from jobs.lift import LiftConfig
from scoring.output import read_maps, read_scores
from tracking.names import LIFT_RUNS
from tracking.runs import Run, git_commit, open_run, run_link, table_name
from views.lift import lift_charts, lift_page, lift_tables

DEFAULT_CONTROLS = ("followers", "duration_s", "price")
SHOWN = 5
LIFTS_A_TASK = 500
"""Of the published size these take 11 s on one core, a cluster's start as long."""
TASK_TIMEOUT_S = 1800.0
"""for any next task to end"""


def main(config: LiftConfig) -> int:
    print_config(resolved(config))
    _check(config)
    output = storage.absolute(config.output)
    storage.check_writable(output)
    inputs, sample_options, origin = _read(config)
    _say_what(inputs)
    if config.dry_run:
        return DONE
    catalogue, sales = table_name(config.videos), table_name(config.sales)
    where = {"scores": storage.absolute(config.scores), "output": output}
    tags = {"catalogue": catalogue, "sales": sales} | origin | where
    with open_run(LIFT_RUNS, f"{catalogue} on {sales}", tags) as run:
        run.params(resolved(config))
        started = time.monotonic()
        first = _lifts(inputs.panel, inputs.treated)
        sample = sample_of(inputs.treated.videos, first.table, scores_uri=config.scores, **sample_options)
        maps = read_maps(config.scores, set(inputs.treated.videos["video_id"]))
        found = study(inputs, first, sample, maps)
        about = {
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "wall_seconds": time.monotonic() - started,
            "code_version": git_commit(),
            "config": resolved(config),
        }
        _publish(found, about, output, run, origin["scoring_run"])
    return DONE


def _check(config: LiftConfig) -> None:
    check_positive({"--min-days": config.min_days, "--draws": config.draws})
    if config.max_gap_days < 0:
        raise Refused(f"--max-gap-days is {config.max_gap_days}, expected 0 or more")
    if not 0 <= config.seed < 2**32:
        raise Refused(f"--seed is {config.seed}, expected at least 0 and below 2^32")


def _read(config: LiftConfig) -> tuple[Inputs, dict[str, Any], dict[str, str]]:
    """Everything is read and checked, nothing written; what ``sample_of`` is told; what the scores come from. Raises
    Refused."""
    # a scoring job that was stopped can leave a row twice until it goes on
    scores = read_scores(config.scores).to_pandas().drop_duplicates("video_id")
    videos = read_videos(config.videos, required=("video_id", "product_id", "posted_at")).to_pandas()
    if config.products is not None:
        videos = _with_products(videos, config.products)
    sales = read_sales(config.sales)
    covariates = config.covariates
    if covariates is None:
        covariates = ("search_index",) if sales["search_index"].null_count < sales.num_rows else ()
    panel, mended = _panel(sales, config, config.rebuild, covariates)
    others = [name for name in REBUILDS if name != config.rebuild] if mended.rebuilt else []
    treated = treatment(panel, videos, scores, min_days=config.min_days)
    inputs = Inputs(
        panel,
        mended,
        treated,
        {name: _panel(sales, config, name, covariates)[0] for name in others},
        _placebo(config, treated.videos),
        config.draws,
        config.seed,
    )
    category = "category" if "category" in videos and treated.videos["category"].nunique() > 1 else None
    made_by = {"scoring_run": scores["run_id"], "model_version": scores["model_version"]}
    origin = {tag: ", ".join(sorted(ids.dropna().unique())) for tag, ids in made_by.items()}
    return inputs, {"controls": _controls(config, treated.videos), "category": category}, origin


def _panel(sales: pa.Table, config: LiftConfig, rebuild: str, covariates: tuple[str, ...]) -> tuple[Panel, Mended]:
    return daily_panel(sales, config.sales, rebuild=rebuild, covariates=covariates, max_gap_days=config.max_gap_days)


def _with_products(videos: pd.DataFrame, uri: str) -> pd.DataFrame:
    products = read_products(uri, required=("product_id",)).to_pandas().drop(columns=["image_uris", "image_outlines"])
    both = [name for name in products if name in videos and name != "product_id"]
    return videos.drop(columns=both).merge(products, on="product_id", how="left")


def _controls(config: LiftConfig, videos: pd.DataFrame) -> tuple[str, ...]:
    named = config.controls if config.controls is not None else DEFAULT_CONTROLS
    usable = []
    for name in named:
        known = name in videos and pd.api.types.is_numeric_dtype(videos[name])
        if known and videos[name].notna().all():
            usable.append(name)
        elif config.controls is not None:
            why = "is null for videos with a lift" if known else "is no number column of the videos or products table"
            raise Refused(f"--controls {name}: {name} {why}; complete it, or leave it out")
        elif known:
            console.print(f"{name} is null for videos with a lift, so it is not held constant")
    return tuple(usable)


def _placebo(config: LiftConfig, videos: pd.DataFrame) -> np.ndarray | None:
    if config.placebo_scores is None:
        return None
    other = read_scores(config.placebo_scores).to_pandas().drop_duplicates("video_id").set_index("video_id")
    found = videos["video_id"].map(other["pe_score"])
    if found.isna().any():
        raise Refused(
            f"--placebo-scores {config.placebo_scores} has no pe_score for {found.isna().sum()} of the {len(videos)} "
            f"videos with a lift (such as {videos['video_id'][found.isna()].iloc[0]}); score the same videos"
        )
    return found.to_numpy(float)


def _say_what(inputs: Inputs) -> None:
    panel, treated, mended = inputs.panel, inputs.treated, inputs.mended
    console.print(
        f"{len(panel.products):,} products on {len(panel.days)} days ({panel.days[0]} to {panel.days[-1]}); "
        f"{len(treated.row):,} lifts, {len(treated.controls):,} controls each"
    )
    for line in notes(mended):
        console.print(line)
    for why, ids in {**mended.left_out, **treated.left_out}.items():
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        console.print(f"left out, {len(ids)}: {why} ({', '.join(ids[:SHOWN])}{more})")


def notes(mended: Mended) -> list[str]:
    """What was mended in the sales table and stays in the study."""
    said = [
        (mended.rebuilt, "products had rolling 30-day sums only; their days were rebuilt"),
        (mended.carried, "product-days without a value carry the last one on"),
        (mended.negative, "product-days have negative revenue, and are kept"),
        (mended.absent_days, "days of the calendar are in no row"),
        (len(mended.absurd), "products have a day of over a thousand times their median day, and are kept"),
    ]
    return [f"{count:,} {what}" for count, what in said if count]


def _lifts(panel: Panel, treated: Treatment) -> StageOne:
    """Few lifts here, many on Ray: those of one day share their permutation, so they stay together."""
    if len(treated.row) <= LIFTS_A_TASK:
        return stage_one(panel, treated)
    by_day = np.argsort(treated.first, kind="stable")
    parts = np.array_split(by_day, math.ceil(len(by_day) / LIFTS_A_TASK))
    with ray_cluster():
        shared = ray.put((panel, treated))
        tasks = [_lifts_of.remote(shared, part) for part in parts]
        progress, pending = ProgressLog("lifts", len(by_day)), tasks
        with StallWatch(TASK_TIMEOUT_S) as watch:
            try:
                while pending:
                    _, pending = ray.wait(pending)
                    watch.alive()
                    left = sum(len(part) for part, task in zip(parts, tasks, strict=True) if task in pending)
                    progress.update(len(by_day) - left)
            finally:
                progress.close()
        return joined(ray.get(tasks), parts)


@ray.remote
def _lifts_of(shared: tuple[Panel, Treatment], chosen: np.ndarray) -> StageOne:
    return stage_one(*shared, chosen)


def _publish(found: Study, about: dict[str, Any], output: str, run: Run, scoring_runs: str) -> None:
    summary = {**dataclasses.asdict(found.verdict), **about}
    summary = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.items()}
    charts = lift_charts(found)
    page = lift_page(found, charts, about, notes(found.inputs.mended))
    files = {
        "lifts.parquet": _parquet(found.stage_one.table, LIFTS),
        "stage2.parquet": _parquet(found.stage_two, STAGE_TWO),
        "report.html": page.encode(),
    }
    for name, table in lift_tables(found).items():
        files[f"tables/{name}.csv"] = table.to_csv(index=False).encode()
        files[f"tables/{name}.tex"] = _latex(table).encode()
    for name, data in files.items():
        storage.write_bytes_atomically(f"{output}/{name}", data)
    storage.write_bytes_atomically(f"{output}/verdict.json", json.dumps(summary, indent=2).encode())
    run.metrics(_metrics(found))
    run.dictionary(summary, "verdict.json")
    links = ", ".join(run_link(run_id, run_id[:8]) for run_id in scoring_runs.split(", ") if run_id)
    run.description(
        f"{found.verdict.text}\n\nScores of {links or 'no known run'}. Look at `report.html` among the artifacts."
    )
    for name, data in files.items():
        if not name.endswith(".parquet"):
            run.text(data.decode(), name)
    for name, chart in charts.items():
        run.text(chart, f"plots/{name}.svg")
    for said in ("", *found.verdict.says, *found.verdict.does_not_say, found.verdict.data_needed):
        console.print(said)
    for doubt in found.verdict.doubts:
        console.print(f"But: {doubt}")
    console.print(
        f"\nreport: {output}/report.html    figures: {output}/verdict.json, lifts.parquet, stage2.parquet, tables/"
    )


def _metrics(found: Study) -> dict[str, float]:
    v = found.verdict
    figures = {
        "pe/slope": v.slope, "pe/ci_low": v.ci_low, "pe/ci_high": v.ci_high, "pe/p": v.p, "supported": v.supported,
        "smallest_detectable": v.smallest_detectable, "lifts": v.n, "lift/mean": found.sample.lift.mean(),
        "pretrend/p": found.events.leads_p, "doubts": len(v.doubts),
    }  # fmt: skip
    for row in found.tables["out_of_sample"].itertuples(index=False):
        figures[f"out_of_sample/{row.model}/{row.columns.replace(', ', '_')}/srcc"] = row.srcc  # pyright: ignore
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _latex(table: pd.DataFrame) -> str:
    styled = table.style.hide(axis="index").format(precision=3, na_rep="", escape="latex")
    return styled.format_index(escape="latex", axis="columns").to_latex(hrules=True)


def _parquet(table: pd.DataFrame, schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, schema, preserve_index=False), sink, compression="zstd")
    return sink.getvalue()
