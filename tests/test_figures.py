"""Figures for papers: their means worked out by hand, and the files that the job writes."""

from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pyarrow as pa
import pytest

from catalog.schemas import SCORES
from catalog.world import WorldPaths
from jobs.report import ReportConfig, main
from tests.test_overlay import write_scored
from tests.test_report import failed, no_product, ok, write_scores
from views.figures import mean_maps, over_time, time_figure

LEFT_HALF = [0.0, 0.0, 0.5, 0.0, 0.5, 1.0, 0.0, 1.0]


def map_row(video_id: str, levels: list[list[list[int]]], quads: list[list[float] | None] | None) -> dict:
    e = np.array(levels, np.uint8)
    shape = dict(zip(("seconds", "height", "width"), e.shape, strict=True))
    return {"video_id": video_id, "e_uint8": e.tobytes(), "product_quads": quads, **shape}


def test_every_video_counts_once_in_the_mean_over_space_however_long_it_is():
    short = map_row("short", [[[255, 0]]], [LEFT_HALF])
    long = map_row("long", [[[0, 255]], [[0, 255]], [[0, 51]]], [LEFT_HALF, None, None])
    talk = map_row("talk", [[[255, 255]]], None)
    scores = pa.Table.from_pylist([ok("short"), ok("long"), no_product("talk")], schema=SCORES)
    means = mean_maps([short, long, talk], scores)
    e, p, pe = means.mean()
    assert means.videos == 2
    assert np.allclose(e, [[0.5, (0 + (1 + 1 + 0.2) / 3) / 2]])
    assert np.allclose(p, [[(1 + 1 / 3) / 2, 0]])
    assert np.allclose(pe, [[0.5, 0]])


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_means_over_time_end_where_fewer_than_three_videos_last(rate: float):
    lists = {"p_per_second": [0.1, 0.1], "pe_per_second": [0.0, 0.1]}
    rows = [ok(f"v{k}", e_per_second=[0.1 * k, 0.2], **lists) for k in (1, 2, 3)]
    rows.append(ok("long", e_per_second=[0.4, 0.2, 0.9], p_per_second=[0.1] * 3, pe_per_second=[0.1] * 3))
    found = over_time(pa.Table.from_pylist(rows, schema=SCORES), rate)
    assert found.index.tolist() == [0.0, 1 / rate]
    assert np.allclose(found["e_per_second", "mean"], [0.25, 0.2])
    assert np.allclose(found["e_per_second", "sem"], [np.std([0.1, 0.2, 0.3, 0.4], ddof=1) / 2, 0], atol=1e-7)
    assert found["pe_per_second", "count"].tolist() == [4, 4]


def test_without_any_pe_there_is_no_figure():
    assert time_figure(pa.Table.from_pylist([no_product("a"), failed("b")], schema=SCORES), 1.0) is None


def test_job_writes_each_figure_as_png_and_svg(tmp_path: Path, small_world: WorldPaths, capsys):
    scores, folder = write_scored(tmp_path, small_world), tmp_path / "figures"
    assert main(ReportConfig(str(scores), str(tmp_path / "r.html"), figures=str(folder))) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["space.png", "space.svg", "time.png", "time.svg"]
    for name in ("space", "time"):
        picture = cv2.imread(str(folder / f"{name}.png"))
        assert picture is not None and min(picture.shape[:2]) > 600
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
    assert "space, time" in capsys.readouterr().out


def test_job_says_which_figure_needs_saved_maps(tmp_path: Path, capsys):
    scores = write_scores(tmp_path / "out", [ok(f"v{k}") for k in range(4)])
    assert main(ReportConfig(str(scores), str(tmp_path / "r.html"), figures=str(tmp_path / "figures"))) == 0
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["time.png", "time.svg"]
    assert "no figure over space; --save-maps does" in capsys.readouterr().out
