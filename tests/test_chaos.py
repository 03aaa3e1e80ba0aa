"""A short bad night: poison of every kind, workers and the driver killed, and every row is there once."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.chaos import POISON, Night, cluster, judged, other_scores, rows_in, scored, start_job, write_catalogue
from scoring.output import OutputFolder
from tests.test_report import failed, no_product, ok, write_scores

STORE_BYTES = 80_000_000
CROWD = """
import sys, time, numpy, ray
ray.init(address=sys.argv[1], log_to_driver=False)
held = []
while True:
    held = [*held, ray.put(numpy.zeros(8 << 20, numpy.uint8))][-15:]
    time.sleep(0.1)
"""
"""goes on putting into the object store, and holds half as much again as fits"""
FILL = """
import sys, time, numpy, ray
ray.init(address=sys.argv[1], log_to_driver=False)
held, size = [], 1 << 20
while size > 100_000:  # smaller ones never go into the store
    try:
        held.append(ray.put(numpy.zeros(size, numpy.uint8)))
    except ray.exceptions.OutOfDiskError:
        size //= 2
while True:
    time.sleep(1)
"""
"""leaves nothing of the object store to others"""


def assert_all_is_well(folder: Path, expected: dict[str, str | None]) -> None:
    assert judged(folder, "night", expected) == {"lost": [], "doubled": [], "wrong code": []}
    assert OutputFolder(str(folder / "night")).summary() is not None
    assert not list((folder / "night" / "attempts").iterdir())
    assert not list((folder / "night").glob("lock-*"))


@pytest.mark.parametrize("score", ["e_score", "p_score", "pe_score"])
def test_any_score_that_differs_between_two_runs_is_told(tmp_path: Path, score: str):
    same = ok("a") | {"e_score": 0.5, "p_score": 0.1, "pe_score": 0.05}
    for name, value in {
        "calm": same[score],
        "near": same[score] * 1.0005,
        "far": same[score] * 1.01,
        "none": None,
    }.items():
        write_scores(tmp_path / name, [same | {score: value}, failed("b"), no_product("c")])
    assert [other_scores(tmp_path, name, "calm") for name in ("near", "far", "none")] == [[], ["a"], ["a"]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_poison_and_a_killed_driver_lose_and_double_nothing(tmp_path: Path):
    expected = write_catalogue(tmp_path, videos=40, seed=0)
    assert {code for code in expected.values() if code} == set(POISON.values())
    night = scored(tmp_path, "night", seed=0, nodes=1, kill_every_s=8, drivers=1)
    assert night.drivers_killed == 1
    assert night.workers_killed >= 1
    assert_all_is_well(tmp_path, expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bad_night_on_three_nodes_loses_and_doubles_nothing(tmp_path: Path, seed: int):
    expected = write_catalogue(tmp_path, videos=600, seed=seed)
    night = scored(tmp_path, "night", seed=seed, nodes=3, kill_every_s=6, drivers=2)
    assert (night.nodes_killed, night.drivers_killed) == (1, 2)
    assert_all_is_well(tmp_path, expected)


@contextlib.contextmanager
def crowded(address: str, by: str = CROWD) -> Iterator[None]:
    crowd = subprocess.Popen([sys.executable, "-c", by, address])
    try:
        yield
        assert crowd.poll() is None
    finally:
        crowd.kill()
        crowd.wait()


def spilled_megabytes(address: str) -> float:
    command = [f"{Path(sys.executable).parent}/ray", "memory", "--address", address, "--stats-only"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r"Spilled (\d+) MiB", said)
    return float(found[1]) if found else 0.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_object_store_that_spills_all_the_time_loses_nothing(tmp_path: Path):
    expected = write_catalogue(tmp_path, videos=64, seed=0)
    with cluster(1, STORE_BYTES) as (address, _, log), crowded(address):
        job = start_job(tmp_path, tmp_path / "night", address, log, Night())
        try:
            assert job.wait(500) == 0, log.read_text()
            assert spilled_megabytes(address) > 2 * STORE_BYTES / 1e6
        finally:
            job.kill()
    assert_all_is_well(tmp_path, expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_lost_head_ends_the_job_and_the_same_command_goes_on_with_another(tmp_path: Path):
    expected = write_catalogue(tmp_path, videos=64, seed=0)
    output = tmp_path / "night"
    with cluster(1) as (address, _, log):
        job = start_job(tmp_path, output, address, log, Night())
        try:
            deadline = time.monotonic() + 120
            while rows_in(output) < 8 and time.monotonic() < deadline:
                time.sleep(1)
            assert 8 <= rows_in(output) < 64, log.read_text()
            kill_head()
            assert job.wait(240) == 1, log.read_text()
        finally:
            job.kill()
    assert "GCS may have been killed" in log.read_text()  # Ray ends a driver without a head and leaves us no word
    with cluster(1) as (address, _, log):
        assert start_job(tmp_path, output, address, log, Night()).wait(200) == 0, log.read_text()
    assert_all_is_well(tmp_path, expected)


def kill_head() -> None:
    """With every process of its machine but the job."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "chaos_job" not in " ".join(process.cmdline()):
                process.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_too_full_to_spill_to_ends_the_job_in_words_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = write_catalogue(tmp_path, videos=64, seed=0)
    with monkeypatch.context() as full:
        full.setenv("RAY_local_fs_capacity_threshold", "0.001")  # above which a disk is taken for full
        full.setenv("RAY_object_spilling_threshold", "1.0")  # beforehand Ray spills without a look at the disk
        with cluster(1, STORE_BYTES) as (address, _, log), crowded(address, FILL):
            job = start_job(tmp_path, tmp_path / "night", address, log, Night())
            try:
                assert job.wait(300) == 1, log.read_text()
            finally:
                job.kill()
    said = log.read_text()
    assert "a disk is full" in said
    assert "Traceback" not in said
    with cluster(1) as (address, _, log):
        assert start_job(tmp_path, tmp_path / "night", address, log, Night()).wait(200) == 0, log.read_text()
    assert_all_is_well(tmp_path, expected)
