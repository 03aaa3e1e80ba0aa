"""What jobs.faithfulness does."""

import collections
import datetime
import io
import json
import random
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import storage
from catalog.errors import Broken, Refused, check_positive
from catalog.tables import read_videos
from jobs.command import (
    DONE,
    TOO_MANY_FAILED,
    ProgressLog,
    StallWatch,
    console,
    print_config,
    ray_cluster,
    resolved,
)
from jobs.faithfulness import ExaminationConfig
from jobs.steps.folders import check_shared
from jobs.steps.score import EXAMINATION_S, print_evidence
from jobs.steps.score_record import tags_of, title_of, verdict_lines
from scoring.evidence import summed_up
from scoring.graph import Images, Resources, examination_graph
from scoring.plan import catalogue_of, check_settings, explainable
from scoring.settings import FaithfulnessConfig
from tracking import registry
from tracking.names import FAITHFULNESS_RUNS
from tracking.runs import Run, git_commit, open_run, table_name
from training.models import ModelSpec
from views.faithfulness import faithfulness_page

MIN_LEVELS = 2
FULL_EXAMINATION_TIMES = 10
"""as long as a brief one, at most"""


def main(config: ExaminationConfig) -> int:
    print_config(resolved(config))
    check_settings(config.sampling, config.product, config.maps, config.limits)
    _check_tests(config.tests, config.sample)
    model = registry.load(config.model)
    spec = explainable(model, config.sampling)
    shuffled = (
        registry.shuffled_control(config.model)
        if config.shuffled_model is None
        else _alike(config.shuffled_model, "--shuffled-model", config, spec)
    )
    others = [_alike(uri, "--other-models", config, spec) for uri in config.other_models]
    # without photos no product is looked for
    videos, images = (
        (read_videos(config.videos), {}) if config.products is None else catalogue_of(config.videos, config.products)
    )
    if not videos.num_rows:
        raise Refused(f"{config.videos} has no videos; give a table that has")
    videos = _sample(videos, config)
    output = storage.absolute(config.output)
    storage.check_writable(output)
    control = f"shuffled labels: {shuffled.uri}" if shuffled else "no model of shuffled labels is known"
    console.print(
        f"model {model.uri} (version {model.version}); {videos.num_rows} videos to examine; {control}; "
        f"{len(others)} other models; output {output}"
    )
    with ray_cluster() as cluster:
        check_shared(output, "--output")
        resources = Resources.of_cluster(cluster["CPU"], cluster.get("GPU", 0))
        console.print(f"cluster: {cluster.get('CPU', 0):g} CPUs, {cluster.get('GPU', 0):g} GPUs")
        if config.dry_run:
            return DONE
        with open_run(FAITHFULNESS_RUNS, title_of(config.videos, model), tags_of(config.videos, model, output)) as run:
            run.params(resolved(config))
            if model.logged_model is not None:
                run.model_input(model.logged_model)
            started = time.monotonic()
            rows = _examined(config, videos, images, spec, model, shuffled, others, resources)
            about = {
                "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "wall_seconds": time.monotonic() - started,
                "model": {"uri": model.uri, "version": model.version},
                "shuffled_model": shuffled and shuffled.uri,
                "code_version": git_commit(),
                "config": resolved(config),
            }
            return _published(config, rows, about, output, run, model.link)


def _check_tests(tests: FaithfulnessConfig, sample: int) -> None:
    check_positive({"--tubelet-pixels": tests.tubelet_pixels, "--random-orders": tests.random_orders})
    if tests.levels < MIN_LEVELS:
        raise Refused(f"--levels is {tests.levels}, expected at least {MIN_LEVELS}")
    if not 0 <= tests.faithfulness_seed < 2**32:
        raise Refused(f"--faithfulness-seed is {tests.faithfulness_seed}, expected at least 0 and below 2^32")
    if sample < 1:
        raise Refused(f"--sample is {sample}, expected at least 1")


def _alike(uri: str, flag: str, config: ExaminationConfig, spec: ModelSpec) -> registry.StoredModel:
    """A model whose maps can be laid over the own one's."""
    try:
        stored = registry.load(uri)
        other = explainable(stored, config.sampling)
    except Refused as refusal:
        raise Refused(str(refusal).replace("--model", flag, 1)) from refusal
    if other.input_size != spec.input_size:
        raise Refused(
            f"{flag} {uri} takes {other.input_size} pixels and --model {config.model} {spec.input_size}; "
            "maps can be compared on one grid only"
        )
    return stored


def _sample(videos: pa.Table, config: ExaminationConfig) -> pa.Table:
    ids = sorted(videos["video_id"].to_pylist())
    if len(ids) > config.sample:
        ids = random.Random(config.tests.faithfulness_seed).sample(ids, config.sample)
    chosen = videos.filter(pc.is_in(videos["video_id"], pa.array(ids, pa.string())))
    chosen = chosen.select(["video_id", "video_uri", "product_id"])
    if config.products is None:
        chosen = chosen.set_column(2, "product_id", pa.nulls(chosen.num_rows, pa.string()))
    return chosen.combine_chunks()


def _examined(
    config: ExaminationConfig,
    videos: pa.Table,
    images: Images,
    spec: ModelSpec,
    model: registry.StoredModel,
    shuffled: registry.StoredModel | None,
    others: list[registry.StoredModel],
    resources: Resources,
) -> list[dict[str, Any]]:
    graph = examination_graph(
        videos, images, model.checkpoint, shuffled and shuffled.checkpoint, [other.checkpoint for other in others],
        spec.input_size, config.sampling, config.product, config.maps, config.limits, config.tests, resources,
    )  # fmt: skip
    progress = ProgressLog("examining", videos.num_rows)
    rows: list[dict[str, Any]] = []
    limit_s = config.limits.video_timeout + FULL_EXAMINATION_TIMES * EXAMINATION_S
    with StallWatch(limit_s) as watch:
        try:
            for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                rows += batch.to_pylist()  # pyright: ignore
                watch.alive()
                failed = sum(row["problem"] is not None for row in rows)
                progress.update(len(rows), f"{failed} failed" if failed else "")
        finally:
            progress.close()
    return rows


def _published(
    config: ExaminationConfig,
    rows: list[dict[str, Any]],
    about: Mapping[str, Any],
    output: str,
    run: Run,
    model_link: str,
) -> int:
    problems = collections.Counter(row["problem"].split(":")[0] for row in rows if row["problem"])
    for row in rows:
        if row["problem"]:
            console.print(f"not examined: {row['video_id']}: {row['problem']}")
    found = [dict(row["figures"]) for row in rows if row["figures"]]
    if not found:
        raise Broken("no video of the sample could be examined, for the reasons above; nothing was written")
    evidence = summed_up(found, config.other_models)
    summary = {**about, "sample": len(rows), "not_examined": dict(problems), **evidence}
    storage.write_bytes_atomically(f"{output}/videos.parquet", _figures_table(rows))
    page = faithfulness_page(summary)
    storage.write_bytes_atomically(f"{output}/report.html", page.encode())
    storage.write_bytes_atomically(f"{output}/faithfulness.json", json.dumps(summary, indent=2).encode())
    run.metrics(_metrics(evidence))
    run.dictionary(summary, "faithfulness.json")
    run.text(page, "report.html")
    said = [f"**{len(found)} videos of {table_name(config.videos)}** by {model_link}.", "", *verdict_lines(evidence)]
    run.description("\n".join(said))
    console.print(f"\n{len(found)} of {len(rows)} videos examined in {about['wall_seconds']:.0f} s")
    print_evidence(evidence)
    console.print(f"report: {output}/report.html    figures: {output}/faithfulness.json, {output}/videos.parquet")
    return TOO_MANY_FAILED if 1 - len(found) / len(rows) > config.max_failed_fraction else DONE


def _metrics(evidence: Mapping[str, Any]) -> dict[str, float]:
    figures = {f"{g['what']}/{g['infill']}/gain_over_{g['over']}": g["mean"] for g in evidence["gains"]}
    for where in ("randomised", "randomised_inside"):
        figures |= {f"{where}/{stage}": v["mean"] for stage, v in evidence[where].items()}
    figures |= {f"stability/{change}": v["mean"] for change, v in evidence["stability"].items()}
    if evidence["shuffled"]:
        figures |= {name: evidence[name]["mean"] for name in ("shuffled", "shuffled_inside")}
    for i, other in enumerate(evidence["models"]):
        figures |= {f"other_model/{i}/{name}": other[name]["mean"] for name in ("maps", "maps_inside")}
        if other["pe_ranking"]:
            figures[f"other_model/{i}/pe_ranking"] = other["pe_ranking"]["mean"]
    return {name: value for name, value in figures.items() if value is not None}


def _figures_table(rows: list[dict[str, Any]]) -> bytes:
    """video_id, figure, value as Parquet: what the summary was made of."""
    columns: dict[str, list[Any]] = {"video_id": [], "figure": [], "value": []}
    for row in rows:
        for name, value in row["figures"] or ():
            columns["video_id"].append(row["video_id"])
            columns["figure"].append(name)
            columns["value"].append(value)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()
