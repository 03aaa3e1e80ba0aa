"""What scoring costs: pace, cores a GPU, what a sample says of a catalogue; by numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import Refused
from jobs.plan import PlanConfig
from jobs.steps.plan import planned, print_plan
from scoring.costs import MOST_POINTS, Machines, MeanCores, Pace, StageCosts, hourly, total_of
from scoring.graph import Resources
from scoring.tally import Tally

STAGES = {"fetch": 0.5, "decode": 1.0, "locate": 2.0, "engage": 4.0}
"""core-seconds of a video, or of a minute of video"""


def row(video_id: str, seconds: int | None = 30, gpu_s: float = 0.0, error: str | None = None) -> dict:
    stages = dict.fromkeys(STAGES, 0.0) if error else STAGES
    return {
        "video_id": video_id, "status": "failed" if error else "ok", "error_code": error, "error_message": error,
        "seconds": seconds, "core_s": stages, "fetch_s": 0.75, "gpu_s": gpu_s, "rejections": None, "figures": None,
    }  # fmt: skip


def tally_of(*rows: dict) -> Tally:
    tally = Tally()
    tally.add(list(rows), sample_fps=1.0)
    return tally


def test_costs_are_told_by_stage_and_by_minute_of_video_that_was_looked_at():
    summary = tally_of(row("a", gpu_s=0.2), row("b", gpu_s=0.4), row("c", None, error="not_found")).summary(cores=2)
    assert summary["video_minutes"] == 1
    assert summary["core_seconds_per_video_minute_by_stage"] == {k: 2 * v for k, v in STAGES.items()}
    assert summary["core_seconds_per_video_minute"] == 15
    assert summary["gpu_seconds_per_video_minute"] == pytest.approx(0.6)
    assert summary["fetch_seconds_per_video_minute"] == 2.25  # the failed one was waited for too
    assert summary["efficiency"] == pytest.approx(15 / (2 * summary["wall_seconds"]), rel=0.1)
    (point,) = summary["pace"]
    assert (point["videos"], point["video_minutes"], point["core_seconds"]) == (3, 1, 15)


def test_pace_keeps_few_points_over_all_of_a_long_run():
    pace = Pace()
    for second in range(100_000):
        pace.add(second, videos=2 * second)
    times = [point["wall_seconds"] for point in pace.points]
    assert MOST_POINTS / 3 < len(times) <= MOST_POINTS
    assert times[0] == 0 and times[-1] > 95_000
    assert max(np.diff(times)) < 3 * min(np.diff(times))
    assert hourly(pace.points, times[-1]) == pytest.approx([7200] * 5)


def test_pace_by_parts_of_a_run_that_begins_slowly():
    points = [{"wall_seconds": 10.0, "videos": 0.0}, {"wall_seconds": 20.0, "videos": 10.0}]
    assert hourly(points, 20, parts=2) == pytest.approx([0, 3600])


def test_a_cluster_that_changes_size_offered_the_mean_of_its_cores():
    now = 0.0
    cores = MeanCores(2, clock=lambda: now)
    assert cores.mean == 2
    now = 10.0
    cores.see(6)  # 20 core-seconds up to here
    now = 30.0
    assert cores.mean == pytest.approx((20 + 120) / 30)
    cores.see(0)
    now = 70.0
    assert cores.mean == pytest.approx(140 / 70)


def test_cores_that_keep_a_gpu_busy_prepare_as_fast_as_it_engages():
    # waiting 3 + decoding 1 + locating 2 core-seconds for each 0.5 s of the GPU, and one core that feeds it
    assert StageCosts(STAGES, fetch_s=3.0, gpu_s=0.5).cores_per_gpu == pytest.approx(6 / 0.5 + 1)
    assert StageCosts(STAGES, fetch_s=0.0, gpu_s=0.5).cores_per_gpu == pytest.approx(3.5 / 0.5 + 1)
    assert "13.0 CPU cores per GPU" in StageCosts(STAGES, 3.0, 0.5).advice()
    assert "CPU cores alone" in StageCosts(STAGES, 3.0, 0.0).advice()


def test_costs_are_read_from_run_json_and_refused_where_there_are_none(tmp_path: Path):
    found = tmp_path / "run.json"
    found.write_text(json.dumps(tally_of(row("a", gpu_s=0.2)).summary(2)))
    costs = StageCosts.read(str(found))
    assert costs.core_s == {k: 2 * v for k, v in STAGES.items()}
    assert (costs.fetch_s, costs.gpu_s) == (1.5, 0.4)
    for content, why in (("[", "not JSON"), ("{}", "no stage costs"), ("[]", "no stage costs")):
        found.write_text(content)
        with pytest.raises(Refused, match=why):
            StageCosts.read(str(found))
    found.write_text(json.dumps(tally_of(row("a", None, error="not_found")).summary(2)))
    with pytest.raises(Refused, match="no stage costs"):
        StageCosts.read(str(found))
    with pytest.raises(Refused, match="no such file"):
        StageCosts.read(str(tmp_path / "absent.json"))


def test_a_total_is_the_samples_mean_times_all_and_its_interval_holds_it():
    all_costs = np.random.default_rng(1).lognormal(0, 1, 20_000)
    held = 0
    for draw in range(40):
        sample = np.random.default_rng(draw).choice(all_costs, 100, replace=False)
        found = total_of(sample, len(all_costs), seed=draw)
        assert found.value == pytest.approx(sample.mean() * 20_000)
        assert found.low is not None and found.high is not None
        held += found.low <= all_costs.sum() <= found.high
    assert held >= 33  # of 40 at 95%: fewer than 34 in one of 500 trials; skewed means are held a little less often


def test_a_total_without_spread_or_of_one_video():
    assert total_of(np.full(5, 2.0), 10).times(1).low == total_of(np.full(5, 2.0), 10).high == 20
    alone = total_of(np.array([2.0]), 10).times(0.5)
    assert (alone.value, alone.low, alone.high) == (10, None, None)


def test_machines_are_paid_for_what_is_idle_too_and_do_the_work_in_time():
    machines = Machines(price_cpu=0.05, price_gpu=1.0, node_cpus=16, efficiency=0.5)
    assert machines.price(100, 10) == pytest.approx(2 * (5 + 10))
    assert machines.nodes(100, hours=2) == 7  # 200 core-hours, 100 cores at once
    assert machines.gpus(10, hours=8) == 3
    assert machines.hours(100, 0, nodes=2, gpus=0) == pytest.approx(200 / 32)
    assert machines.hours(100, 10, nodes=2, gpus=1) == pytest.approx(20)  # the GPU is what is waited for


def test_a_plan_takes_the_sample_to_the_whole_catalogue():
    videos = pa.table({"video_id": [str(n) for n in range(1000)]})
    rows = [row(str(n), gpu_s=0.36) for n in range(4)]
    config = PlanConfig("v", price_cpu=0.04, price_gpu=2.0, node_cpus=8, efficiency=0.8, deadline_hours=0.5)
    plan = planned(config, videos, rows, tally_of(*rows).summary(2))
    estimates = plan["estimates"]
    assert estimates["video_hours"]["value"] == pytest.approx(1000 * 30 / 3600)
    assert estimates["core_hours"]["value"] == pytest.approx(1000 * 7.5 / 3600 / 0.8)
    assert estimates["gpu_hours"]["value"] == pytest.approx(0.1 / 0.8)
    assert estimates["price"]["value"] == pytest.approx((1000 * 7.5 / 3600 * 0.04 + 0.1 * 2) / 0.8)
    assert (plan["cpu_nodes"], plan["gpus"]) == (1, 1)
    assert [estimates[what]["value"] for what in ("cpu_nodes", "gpus")] == [1, 1]
    assert estimates["wall_hours"]["value"] == pytest.approx(1000 * 7.5 / 3600 / 0.8 / 8)
    assert plan["cores_per_gpu"] == pytest.approx((0.75 + 1 + 2) / 0.36 + 1)
    assert StageCosts.of(plan) == StageCosts({k: 2 * v for k, v in STAGES.items()}, 1.5, 0.72)


def test_a_plan_tells_how_sure_its_nodes_and_hours_are(capsys: pytest.CaptureFixture[str]):
    videos = pa.table({"video_id": [str(n) for n in range(10_000)]})
    rows = [row(str(n)) | {"core_s": {stage: spent * (1 + n % 3) for stage, spent in STAGES.items()}} for n in range(9)]
    config = PlanConfig("v", price_cpu=0.04, node_cpus=4, deadline_hours=1)
    plan = planned(config, videos, rows, tally_of(*rows).summary(2))
    nodes, hours = plan["estimates"]["cpu_nodes"], plan["estimates"]["wall_hours"]
    assert nodes["low"] < nodes["value"] == plan["cpu_nodes"] < nodes["high"]
    assert hours["low"] < hours["value"] <= 1 < hours["high"]
    alone = planned(config, videos, rows[:1], tally_of(*rows[:1]).summary(2))
    assert alone["estimates"]["wall_hours"]["high"] is None

    print_plan(config, plan)
    said = capsys.readouterr().out
    assert f"hours on {plan['cpu_nodes']} CPU nodes of 4 cores" in said and "CPU nodes for 1 h" in said


def test_a_sample_of_failures_alone_is_no_plan():
    rows = [row("a", None, error="not_found")]
    with pytest.raises(Refused, match=r"not one video of the sample could be scored.*a: not_found"):
        planned(PlanConfig("v", 0.04), pa.table({"video_id": ["a"]}), rows, tally_of(*rows).summary(2))


def test_gpus_are_shared_by_their_share_and_a_cluster_without_any_grows_in_both_stages():
    halves = Resources.of_cluster(16, 2, gpu_share=0.5)
    assert (halves.engage_actors, halves.max_engage_actors, halves.gpus_an_engage_actor) == (4, 4, 0.5)
    assert (halves.prepare_actors, halves.cpus_an_actor) == (12, 1.0)
    whole = Resources.of_cluster(16, 2, max_prepare_actors=40)
    assert (whole.engage_actors, whole.max_engage_actors, whole.max_prepare_actors) == (2, 2, 40)
    cores = Resources.of_cluster(4, 0, max_prepare_actors=10)
    assert (cores.prepare_actors, cores.max_prepare_actors, cores.engage_actors, cores.max_engage_actors) == (
        4,
        10,
        4,
        10,
    )
