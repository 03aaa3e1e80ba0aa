"""An object store that throttles, refuses, loses, dawdles or hangs up: what is tried again, which row it becomes."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import s3fs
from faulty_s3 import Application, FaultyS3, answers, cut, faulty_s3, healthy, slow
from test_storage import failure

from catalog import storage
from catalog.errors import ErrorCode, Refused, Stage, VideoError
from catalog.ranges import BLOCK_BYTES, WHOLE_BELOW_BYTES, opened
from catalog.video import sample_frames
from scoring.attempts import Attempts
from scoring.output import OutputFolder

SLOW_DOWN = answers("503 Slow Down", "SlowDown")
UNAVAILABLE = answers("500 Internal Server Error", "InternalError")
DENIED = answers("403 Forbidden", "AccessDenied")
GONE = answers("404 Not Found", "NoSuchKey")
VIDEO = os.urandom(100_000)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with faulty_s3() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        fs, _ = storage.filesystem_of("s3://videos")
        fs.mkdir("videos")
        storage.write_bytes_atomically("s3://videos/a.mp4", VIDEO)
        store.requests.clear()
        yield store
        store.planned.clear()
        fs.rm("videos", recursive=True)
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "faults", [[SLOW_DOWN] * 3, [UNAVAILABLE], [healthy, SLOW_DOWN, SLOW_DOWN], [healthy, cut], [healthy, cut, cut]]
)
def test_what_passes_is_tried_again_until_the_video_is_whole(store: FaultyS3, faults: list):
    store.plan("/videos/a.mp4", *faults)
    with storage.fetch("s3://videos/a.mp4", len(VIDEO), 60) as path:
        assert path.read_bytes() == VIDEO
    spoilt = [fault for fault in faults if fault is not healthy]
    assert len(store.asked("/videos/a.mp4")) == 2 + len(spoilt)  # HEAD and GET, and one more for each fault


@pytest.mark.parametrize(("fault", "code"), [(DENIED, ErrorCode.FORBIDDEN), (GONE, ErrorCode.NOT_FOUND)])
@pytest.mark.parametrize("before", [[], [healthy]])  # at HEAD, at GET
def test_what_does_not_pass_is_not_tried_again(store: FaultyS3, before: list, fault, code: ErrorCode):
    store.plan("/videos/a.mp4", *before, fault, for_ever=True)
    assert failure("s3://videos/a.mp4", timeout_s=60).code == code
    assert len(store.asked("/videos/a.mp4")) <= 2 + len(before)


@pytest.mark.parametrize(
    ("fault", "why"),
    [(SLOW_DOWN, "did not arrive within 3 s"), (slow, "did not arrive within 3 s"), (cut, "50000 of 100000 bytes")],
)
def test_a_store_that_never_gets_better_costs_the_row_within_its_time(store: FaultyS3, fault, why: str):
    store.plan("/videos/a.mp4", healthy, fault, for_ever=True)
    began = time.monotonic()
    error = failure("s3://videos/a.mp4", timeout_s=3)
    assert error.code == ErrorCode.INTERNAL
    assert why in error.message
    assert time.monotonic() - began < 30  # nowhere near the minutes that all attempts together could take


def test_a_store_that_throttles_writing_gets_the_file_in_the_end(store: FaultyS3):
    store.plan("/videos/scores/1.parquet", SLOW_DOWN, UNAVAILABLE)
    storage.write_bytes_atomically("s3://videos/scores/1.parquet", b"rows")
    assert storage.read_bytes("s3://videos/scores/1.parquet") == b"rows"


def test_a_write_that_cannot_end_ends_at_the_time_limit(store: FaultyS3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "WRITE_TIMEOUT_S", 1.0)
    store.plan("/videos/run.json", SLOW_DOWN, for_ever=True)
    with pytest.raises(TimeoutError, match=r"run.json could not be written within 1 s"):
        storage.write_bytes_atomically("s3://videos/run.json", b"{}")
    store.planned.clear()
    assert not storage.exists("s3://videos/run.json")


def late(application: Application, environ: dict[str, Any], start_response: Callable) -> Iterator[bytes]:
    time.sleep(4)
    yield from application(environ, start_response)


def test_a_folder_may_take_longer_to_list_than_a_file_to_be_asked_for_but_not_for_ever(
    store: FaultyS3, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(storage, "CALL_TIMEOUT_S", 3.0)
    storage.write_bytes_atomically("s3://videos/out/scores/1.parquet", b"rows")
    store.plan("/videos", healthy, late)  # is it a folder? what does it hold?
    assert storage.files_in("s3://videos/out/scores") == ["s3://videos/out/scores/1.parquet"]
    assert not store.planned["/videos"]
    monkeypatch.setattr(storage, "LIST_TIMEOUT_S", 1.0)
    store.plan("/videos", healthy, late)
    with pytest.raises(Refused, match=r"out/scores cannot be listed: the storage did not answer in time"):
        OutputFolder("s3://videos/out").rows()


@pytest.fixture
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store whose server is down: connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setitem(storage._S3_OPTIONS["config_kwargs"], "retries", {"max_attempts": 1})
    monkeypatch.setattr(storage, "_S3_ATTEMPTS", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    yield "s3://videos/out/a"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "ask",
    [
        storage.exists,
        storage.files_in,
        storage.folders_in,
        storage.read_bytes,
        storage.remove,
        storage.fingerprint,
        lambda uri: storage.write_bytes_atomically(uri, b"rows"),
        lambda uri: storage.create(uri, b"lock"),
    ],
)
def test_a_store_that_cannot_be_reached_is_an_os_error(nobody_there: str, ask: Callable[[str], object]):
    with pytest.raises(OSError, match="Could not connect") as unreachable:
        ask(nobody_there)
    assert unreachable.value.__cause__ is not unreachable.value  # who follows the causes comes to an end


def test_a_store_that_cannot_be_reached_costs_rows_and_notes_and_not_the_actor(nobody_there: str):
    assert failure(nobody_there, timeout_s=60).code == ErrorCode.INTERNAL
    with pytest.raises(VideoError, match="Could not connect"), opened(nobody_there, 100, 60):
        pass
    with pytest.raises(Refused, match=r"cannot be written: .*Could not connect"):
        storage.check_writable(nobody_there)
    attempts = Attempts(nobody_there)
    with attempts.block(Stage.DECODE, ["a"]) as alone, attempts.video(Stage.DECODE, "a"):
        assert not alone
    assert not attempts.asked_to_stop()


def write_long_clip(path: Path, seconds: int, index_first: bool) -> None:
    """Noise that hardly compresses, so that a minute takes some megabytes; a key frame every second."""
    rng = np.random.default_rng(0)
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream("libx264", rate=4, options={"preset": "ultrafast", "crf": "4", "g": "4"})
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for _ in range(4 * seconds):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("index_first", [True, False])
def test_of_a_long_video_only_what_is_looked_at_is_fetched(store: FaultyS3, tmp_path: Path, index_first: bool):
    write_long_clip(tmp_path / "long.mp4", 90, index_first)
    data = (tmp_path / "long.mp4").read_bytes()
    assert len(data) > 2 * WHOLE_BELOW_BYTES
    storage.write_bytes_atomically("s3://videos/long.mp4", data)
    store.requests.clear()
    with opened("s3://videos/long.mp4", len(data), 60) as source:
        frames, times = sample_frames(source, max_seconds=20)
    expected, expected_times = sample_frames(tmp_path / "long.mp4", max_seconds=20)
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_array_equal(times, expected_times)
    ranges = [its_range for method, its_range in store.asked("/videos/long.mp4") if method == "GET"]
    assert len(ranges) == len(set(ranges))  # nothing twice
    assert len(ranges) * BLOCK_BYTES < len(data) / 2
    with opened("s3://videos/long.mp4", len(data), 60, whole=True) as path:
        assert isinstance(path, Path) and path.read_bytes() == data

    store.plan("/videos/long.mp4", healthy, healthy, DENIED, for_ever=True)  # at the second block
    with pytest.raises(VideoError) as failed, opened("s3://videos/long.mp4", len(data), 60) as source:
        sample_frames(source, max_seconds=20)
    assert (failed.value.code, failed.value.stage) == (ErrorCode.FORBIDDEN, Stage.FETCH)


def test_a_large_object_that_is_refused_missing_or_too_large_says_so(store: FaultyS3):
    storage.write_bytes_atomically("s3://videos/big.mp4", bytes(WHOLE_BELOW_BYTES))
    for uri, limit, code in (
        ("s3://videos/big.mp4", WHOLE_BELOW_BYTES - 1, ErrorCode.TOO_LARGE),
        ("s3://videos/absent.mp4", 2**30, ErrorCode.NOT_FOUND),
        ("s3://videos", 2**30, ErrorCode.NOT_A_VIDEO),
    ):
        with pytest.raises(VideoError) as failed, opened(uri, limit, 30):
            pass
        assert (failed.value.code, failed.value.stage) == (code, Stage.FETCH)
    with pytest.raises(VideoError) as failed, opened("s3://videos/big.mp4", WHOLE_BELOW_BYTES, 30) as source:
        sample_frames(source)
    assert (failed.value.code, failed.value.stage) == (ErrorCode.NOT_A_VIDEO, Stage.DECODE)  # zeros, all the same
