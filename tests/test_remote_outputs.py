"""Pages, figures and overlays of scores in an object store, written there too."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from catalog import storage
from catalog.errors import Refused
from catalog.world import WorldPaths
from jobs import compare, report
from jobs.overlay import OverlayConfig
from jobs.overlay import main as draw_overlays
from tests.test_overlay import run_overlay, write_scored
from tests.test_storage import bucket, s3_server  # noqa: F401


@pytest.fixture
def remote_scores(bucket: str, tmp_path: Path, small_world: WorldPaths) -> str:  # noqa: F811
    scores = write_scored(tmp_path, small_world, products=str(small_world.products))
    for file in scores.rglob("*"):
        if file.is_file():
            storage.write_bytes_atomically(f"{bucket}/scored/{file.relative_to(scores)}", file.read_bytes())
    return f"{bucket}/scored"


def names_in(folder: str) -> list[str]:
    return [uri.rpartition("/")[2] for uri in storage.files_in(folder) or []]


def test_pages_and_figures_go_to_an_object_store(remote_scores: str):
    out = remote_scores.replace("scored", "pages")
    config = report.ReportConfig(remote_scores, f"{out}/report.html", pages=1, figures=f"{out}/figures")
    assert report.main(config) == 0
    page = storage.read_bytes(f"{out}/report.html").decode()
    linked = names_in(f"{out}/report-videos")
    assert len(linked) == 2 and all(f'href="report-videos/{name}"' in page for name in linked)
    assert "data:image/jpeg;base64," in page
    assert names_in(f"{out}/figures") == ["space.png", "space.svg", "time.png", "time.svg"]
    assert compare.main(compare.CompareConfig(remote_scores, f"{out}/runs.html", other=remote_scores)) == 0
    assert compare.main(compare.CompareConfig(remote_scores, f"{out}/two.html", creatives=("v000000", "v000001"))) == 0
    assert names_in(out) == ["report.html", "runs.html", "two.html"]


@pytest.mark.slow
def test_overlays_go_to_an_object_store_and_are_not_drawn_again(remote_scores: str, capsys):
    out = remote_scores.replace("scored", "overlays")
    done = run_overlay("--scores", remote_scores, "--output", out)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(io.BytesIO(storage.read_bytes(f"{out}/overlays.parquet"))).to_pylist()
    drawn = {row["file"] for row in rows if row["file"]}
    assert len(drawn) == 3
    assert set(names_in(out)) == drawn | {"overlay.json", "overlays.parquet"}
    assert storage.read_bytes(f"{out}/{min(drawn)}")[4:8] == b"ftyp"
    assert draw_overlays(OverlayConfig(remote_scores, out, video=("v000000", "v000001"))) == 0
    assert "0 videos to draw, 2 finished before" in capsys.readouterr().out


def test_a_bucket_that_is_not_there_is_refused_before_any_work(remote_scores: str):
    for job, config in (
        (report.main, report.ReportConfig(remote_scores, "s3://nowhere/report.html")),
        (compare.main, compare.CompareConfig(remote_scores, "s3://nowhere/c.html", other=remote_scores)),
        (draw_overlays, OverlayConfig(remote_scores, "s3://nowhere/overlays")),
    ):
        with pytest.raises(Refused, match="s3://nowhere"):
            job(config)
