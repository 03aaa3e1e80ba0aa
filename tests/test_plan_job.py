"""jobs.plan and the order of work, on a real local Ray."""

import datetime
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixed_catalogue import ROOT, RUN_TIMEOUT_S, Catalogue, make_catalogue

from catalog.errors import Refused
from jobs.plan import PlanConfig
from jobs.steps.plan import main

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make_catalogue(tmp_path_factory.mktemp("planned"))


def plan(catalogue: Catalogue, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.plan", *catalogue.inputs(), "--max-seconds", "2", *flags]
    return subprocess.run(command, cwd=ROOT, env=catalogue.env, capture_output=True, text=True, timeout=RUN_TIMEOUT_S)


def test_a_plan_scores_a_sample_keeps_nothing_and_its_costs_serve_a_dry_run(catalogue: Catalogue):
    target = catalogue.folder / "plan.json"
    ended = plan(catalogue, "--price-cpu", "0.05", "--sample", "9", "--output", str(target))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(target.read_text())
    table = pq.read_table(catalogue.folder / "videos.parquet")
    assert (found["videos"], found["sample"]) == (table.num_rows, 9)
    hours = found["estimates"]["core_hours"]
    by_stage = found["core_seconds_per_video_minute_by_stage"]
    assert 0 < hours["low"] <= hours["value"] <= hours["high"]
    assert all(spent > 0 for spent in by_stage.values())
    minutes = 60 * found["estimates"]["video_hours"]["value"]
    assert hours["value"] == pytest.approx(sum(by_stage.values()) * minutes / 3600 / 0.88)
    assert found["estimates"]["price"]["value"] == pytest.approx(0.05 * hours["value"])
    for told in ("core-hours", "95% from", "CPU nodes of 16 cores", "CPU cores alone"):
        assert told in ended.stdout
    for code, n in found["failed"].items():
        assert f"failed in the sample, {code}: {n}" in ended.stdout
    assert not list(catalogue.folder.rglob("scores"))

    with_gpu = found | {"gpu_seconds_per_video_minute": sum(by_stage.values())}
    target.write_text(json.dumps(with_gpu))
    dry = catalogue.score(*catalogue.flags("dry"), "--dry-run", "--costs", str(target))
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "CPU cores per GPU to keep it busy" in dry.stdout


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"price_cpu": 0.0}, "--price-cpu is 0"),
        ({"price_gpu": -1.0}, "--price-gpu is -1"),
        ({"efficiency": 1.5}, r"--efficiency is 1\.5"),
        ({"gpu_share": 0.0}, "--gpu-share is 0"),
        ({"sample": 0}, "--sample is 0"),
        ({"output": "{folder}/model.pt/plan.json"}, "cannot be written"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(catalogue: Catalogue, settings: dict, why: str):
    given = {"products": f"{catalogue.folder}/products.parquet", "model": f"{catalogue.folder}/model.pt"}
    given |= {"videos": f"{catalogue.folder}/videos.parquet", "price_cpu": 1.0} | settings
    with pytest.raises(Refused, match=why):
        main(
            PlanConfig(**{k: v.format(folder=catalogue.folder) if isinstance(v, str) else v for k, v in given.items()})
        )


DEADLY = """
from benchmarks import chaos_job
from jobs.command import run_job
from jobs.plan import PlanConfig, main
from scoring import graph
graph.PrepareActor, graph.EngageActor = chaos_job.FragilePrepare, chaos_job.FragileEngage
run_job(PlanConfig, main, "")
"""
"""jobs.plan whose processes die of the videos named so"""


@pytest.mark.slow
def test_a_video_that_kills_its_process_costs_one_row_of_the_sample(catalogue: Catalogue):
    rows = pq.read_table(catalogue.folder / "many.parquet").slice(0, 4).to_pylist()
    for row, name in zip(rows, ("kills_prepare", "kills_engage"), strict=False):
        row["video_id"] = name
    pq.write_table(pa.Table.from_pylist(rows), catalogue.folder / "deadly.parquet")
    target = catalogue.folder / "deadly.json"
    command = [sys.executable, "-c", DEADLY, *catalogue.inputs("deadly"), "--max-seconds", "1", "--price-cpu", "1"]
    ended = subprocess.run(
        [*command, "--output", str(target)], cwd=ROOT, env=catalogue.env, capture_output=True, text=True,
        timeout=2 * RUN_TIMEOUT_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(target.read_text())["failed"] == {"quarantined": 2}


@pytest.mark.slow
def test_the_newest_videos_can_be_read_while_the_job_runs(catalogue: Catalogue):
    many = pq.read_table(catalogue.folder / "many.parquet")
    first = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    days = [first + datetime.timedelta(days=37 * row % many.num_rows) for row in range(many.num_rows)]
    pq.write_table(many.append_column("posted_at", pa.array(days)), catalogue.folder / "dated.parquet")
    by_age = [name for _, name in sorted(zip(days, many["video_id"].to_pylist(), strict=True), reverse=True)]
    flags = [*catalogue.flags("newest", "dated"), "--max-seconds", "1", "--order", "newest"]
    output, seen = catalogue.folder / "newest", list[set[str]]()
    with (catalogue.folder / "log.txt").open("w+") as log:
        command = [sys.executable, "-m", "jobs.score", *flags]
        job = subprocess.Popen(command, cwd=ROOT, env=catalogue.env, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + RUN_TIMEOUT_S
            while job.poll() is None and time.monotonic() < deadline:
                if any(output.glob("scores/*.parquet")):  # as any reader would, that knows nothing of the job
                    seen.append(set(pq.read_table(output / "scores", columns=["video_id"])["video_id"].to_pylist()))
                time.sleep(0.05)
            assert job.wait(30) == 0, Path(log.name).read_text()
        finally:
            job.kill()
    assert seen and all(earlier <= later for earlier, later in itertools.pairwise(seen))
    meanwhile = [ids for ids in seen if len(ids) <= len(by_age) // 2]
    assert meanwhile, "nothing could be read before half of it was done"
    # a block of three may overtake another, on each of two actors and in two stages
    assert all(ids <= set(by_age[: len(ids) + 12]) for ids in meanwhile)
    assert len(read_all(output)) == len(by_age)


def read_all(output: Path) -> list[str]:
    return pq.read_table(output / "scores", columns=["video_id"])["video_id"].to_pylist()
