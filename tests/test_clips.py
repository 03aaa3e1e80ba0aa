"""The clip cache: decoded once, found again by content and settings, and read as training wants it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from catalog.errors import Broken
from catalog.sampling import SamplingConfig
from catalog.tables import read_videos
from catalog.video import iter_frames
from catalog.world import WorldPaths
from jobs.command import ray_cluster
from training.clips import DecodeActor, cached_clips, clip_of, dataset
from training.decode import SHORT_SIDE, make_decode, network_input, squashed


@pytest.fixture(scope="module")
def cores() -> Iterator[int]:
    with ray_cluster() as cluster:
        yield int(cluster["CPU"])


@pytest.fixture
def videos(small_world: WorldPaths, tmp_path: Path) -> pd.DataFrame:
    """Four videos in files of their own, the last a copy of the first, and two that are none."""
    table = read_videos(str(small_world.videos)).to_pandas()[["video_id", "video_uri"]].head(3)
    table["video_uri"] = [str(shutil.copy(uri, tmp_path / f"{i}.mp4")) for i, uri in enumerate(table["video_uri"])]
    shutil.copy(table["video_uri"][0], tmp_path / "again.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    more = {
        "video_id": ["again", "text", "gone"],
        "video_uri": [tmp_path / f"{n}.mp4" for n in ("again", "text", "no")],
    }
    return pd.concat([table, pd.DataFrame(more).astype(str)], ignore_index=True)


@pytest.mark.timeout(300)
def test_a_clip_is_decoded_once_and_again_when_its_video_or_the_settings_change(
    videos: pd.DataFrame, cores: int, tmp_path: Path
) -> None:
    cache, told = str(tmp_path / "cache"), []
    first = cached_clips(videos, SamplingConfig(), 112, cache, cores, told.append)
    assert first.reused == 0
    assert sorted(first.table["video_id"]) == sorted(set(videos["video_id"]) - {"text", "gone"})
    assert set(first.undecodable) == {"text", "gone"}
    assert "not_a_video" in first.undecodable["text"]
    assert "not_found" in first.undecodable["gone"]
    assert first.table["key"].nunique() == 3
    assert told[-1] == 5  # the copy is not decoded
    parts = sorted(Path(cache).rglob("*.parquet"))

    again = cached_clips(videos, SamplingConfig(), 112, cache, cores, told.append)
    assert again.reused == 4
    assert set(again.undecodable) == {"text", "gone"}
    assert sorted(Path(cache).rglob("*.parquet")) == parts

    shutil.copy(videos["video_uri"][1], videos["video_uri"][2])
    changed = cached_clips(videos, SamplingConfig(), 112, cache, cores, told.append).table.set_index("video_id")
    ids = videos["video_id"]
    assert changed["key"][ids[1]] == changed["key"][ids[2]]
    other = cached_clips(videos.head(1), SamplingConfig(max_seconds=2), 112, cache, cores, told.append)
    assert other.reused == 0
    assert other.table["seconds"].tolist() == [2]


@pytest.mark.timeout(300)
def test_the_dataset_holds_every_asked_clip_once_as_the_networks_see_it(
    videos: pd.DataFrame, cores: int, tmp_path: Path
) -> None:
    clips = cached_clips(videos, SamplingConfig(), 112, str(tmp_path / "cache"), cores, lambda _: None)
    rows = pd.DataFrame({"video_id": [videos["video_id"][0], "again", videos["video_id"][2]], "label": [1.0, 2, 3]})
    found = dataset(clips, rows.assign(weight=0.5), 112).take_all()
    assert {row["video_id"]: (row["label"], row["weight"]) for row in found} == {
        video_id: (label, 0.5) for video_id, label in zip(rows["video_id"], rows["label"], strict=True)
    }
    uris = dict(zip(videos["video_id"], videos["video_uri"], strict=True))
    for row in found:
        frames = iter_frames(Path(uris[row["video_id"]]))
        np.testing.assert_array_equal(clip_of(row), np.stack([network_input(frame, 112) for frame in frames]))
    orders = [[row["video_id"] for row in dataset(clips, rows.assign(weight=1.0), 32, seed).take_all()]
              for seed in (0, 0, 1, 2, 3)]  # fmt: skip
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1
    other = str(tmp_path / "decoded one by one")
    for last in (1, 0):
        again = cached_clips(videos.iloc[last:], SamplingConfig(), 112, other, cores, lambda _: None)
    ordered = [row["video_id"] for row in dataset(again, rows.assign(weight=1.0), 32, 0).take_all()]
    assert ordered == orders[0]


def test_a_cached_frame_keeps_its_aspect_within_limits(videos: pd.DataFrame) -> None:
    frames, hashes = make_decode(SamplingConfig(), 112)(videos["video_uri"][0])
    (original,) = {frame.size for frame in iter_frames(Path(videos["video_uri"][0]))}
    height, width = frames.shape[1:3]
    assert min(height, width) == min(SHORT_SIDE, *original)
    assert width / height == pytest.approx(original[0] / original[1], rel=0.02)
    assert len(hashes) == len(frames)
    assert squashed(frames, 112).shape == (len(frames), 112, 112, 3)


def test_a_cache_that_cannot_be_written_to_breaks_the_job_in_words(videos: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    actor = DecodeActor(SamplingConfig(), 112, str(tmp_path / "file" / "clips"))
    row = {"video_id": "v", "key": "k", "seconds": 1, "height": 1, "width": 1, "hashes": [1], "frames": b"abc"}
    with pytest.raises(Broken, match="give another --clip-cache"):
        actor._written([row])
