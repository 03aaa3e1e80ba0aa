"""A short bad night: poison of every kind, workers and the driver killed, and every row is there once."""

from pathlib import Path

import pytest

from benchmarks.chaos import POISON, judged, scored, write_catalogue
from scoring.output import OutputFolder


def assert_all_is_well(folder: Path, expected: dict[str, str | None]) -> None:
    assert judged(folder, "night", expected) == {"lost": [], "doubled": [], "wrong code": []}
    assert OutputFolder(str(folder / "night")).summary() is not None
    assert not list((folder / "night" / "attempts").iterdir())
    assert not list((folder / "night").glob("lock-*"))


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
