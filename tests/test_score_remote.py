"""A scoring job whose tables, videos, images and output are all in an object store."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from catalog import storage
from catalog.sampling import SamplingConfig
from catalog.world import WorldPaths
from jobs.score import ScoreConfig, main
from scoring.output import OutputFolder, read_scores
from tests.test_storage import bucket, s3_server  # noqa: F401
from training.models import EngagementModel, ModelSpec, save_checkpoint

VIDEOS = 5
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def config(
    bucket: str,  # noqa: F811
    small_world: WorldPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ScoreConfig]:
    """Of a few videos in the bucket, beside a Ray whose workers know the store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    rows = pq.read_table(small_world.videos).slice(0, VIDEOS).to_pylist()
    products = pq.read_table(small_world.products)
    images = [uri for uris in products["image_uris"].to_pylist() for uri in uris]
    for name in {row["video_uri"] for row in rows}.union(images):
        storage.write_bytes_atomically(f"{bucket}/in/{name}", (small_world.folder / name).read_bytes())
    write_table(f"{bucket}/in/videos.parquet", pa.Table.from_pylist(rows))
    write_table(f"{bucket}/in/products.parquet", products)
    torch.manual_seed(0)
    save_checkpoint(EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=64)), tmp_path / "model.pt")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield ScoreConfig(
            videos=f"{bucket}/in/videos.parquet", products=f"{bucket}/in/products.parquet",
            output=f"{bucket}/november", model=str(tmp_path / "model.pt"), faithfulness_videos=0,
            sampling=SamplingConfig(max_seconds=2), save_maps=True,
        )  # fmt: skip
    finally:
        ray.shutdown()


def write_table(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes_atomically(uri, sink.getvalue())


def rows_of(output: str) -> dict[str, dict[str, Any]]:
    """By video_id; every one is there once, with its map, and nothing is left in hand."""
    rows = read_scores(output).to_pylist()
    assert len({row["video_id"] for row in rows}) == len(rows)
    assert sorted(m["video_id"] for m in OutputFolder(output).maps()) == sorted(row["video_id"] for row in rows)
    assert {uri.rpartition("/")[2] for uri in storage.files_in(output) or []} == {"config.json", "run.json"}
    assert {uri.rpartition("/")[2] for uri in storage.folders_in(output) or []} == {"scores", "maps"}
    return {row["video_id"]: row for row in rows}


def test_a_job_in_an_object_store_is_gone_on_with_and_scores_only_what_has_changed_since(
    config: ScoreConfig, capsys: pytest.CaptureFixture[str]
):
    assert main(dataclasses.replace(config, limit=2)) == 0
    first = rows_of(config.output)
    assert len(first) == 2
    assert main(config) == 0
    assert f"{VIDEOS} videos, 2 finished before, {VIDEOS - 2} to score" in capsys.readouterr().out
    november = rows_of(config.output)
    assert len(november) == VIDEOS and {row["status"] for row in november.values()} <= {"ok", "not_localised"}
    assert {video_id: november[video_id] for video_id in first} == first

    folder = config.videos.rpartition("/")[0]
    table = pq.read_table(io.BytesIO(storage.read_bytes(config.videos))).to_pylist()
    changed, other = table[0], table[1]
    storage.write_bytes_atomically(
        f"{folder}/{changed['video_uri']}", storage.read_bytes(f"{folder}/{other['video_uri']}")
    )
    december = dataclasses.replace(config, output=config.output.replace("november", "december"), since=config.output)
    assert main(december) == 0
    assert f"{VIDEOS - 1} videos are as they were" in capsys.readouterr().out
    after = rows_of(december.output)
    assert after.keys() == november.keys()
    assert [video_id for video_id in after if after[video_id] != november[video_id]] == [changed["video_id"]]
    assert after[changed["video_id"]]["e_score"] == pytest.approx(after[other["video_id"]]["e_score"], rel=1e-3)
