"""Files on the local disk and in an S3 store (a real server of the protocol on this machine)."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from catalog import storage
from catalog.errors import ErrorCode, Refused, Stage, VideoError
from catalog.tables import read_videos

LIMIT = 2**20
ODD_NAMES = ["a b.mp4", "a#b.mp4", "a%20b.mp4", "größe 动画.mp4", "[x]*?.mp4", "a::b.mp4", "~x.mp4"]


def failure(uri: str, max_bytes: int = LIMIT, timeout_s: float = 10) -> VideoError:
    with pytest.raises(VideoError) as failed, storage.fetch(uri, max_bytes, timeout_s):
        pass
    assert failed.value.stage == Stage.FETCH
    assert uri in failed.value.message
    return failed.value


@contextlib.contextmanager
def without_root_rights() -> Iterator[None]:
    """Root may read and write everything, so root becomes nobody for a moment."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    fs, _ = storage.filesystem_of("s3://catalogue")
    fs.mkdir("catalogue")
    yield "s3://catalogue"
    fs.rm("catalogue", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_local_names_are_taken_literally_and_used_in_place(tmp_path, monkeypatch, name):
    file = tmp_path / name
    file.write_bytes(b"video")
    monkeypatch.chdir(tmp_path)
    for uri in (str(file), name, file.as_uri()):
        assert storage.absolute(uri) == str(file)
        with storage.fetch(uri, LIMIT, 10) as path:
            assert path == file
        assert storage.read_bytes(uri) == b"video"
    assert file.exists()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_in_an_object_store_are_taken_literally(bucket, name):
    uri = f"{bucket}/clips/{name}"
    storage.write_bytes_atomically(uri, b"video")
    assert storage.exists(uri)
    assert storage.files_in(f"{bucket}/clips/") == [uri]
    with storage.fetch(uri, LIMIT, 10) as path:
        assert path.read_bytes() == b"video"
        assert path.suffix == ".mp4"
    assert not path.exists()


def test_relative_uris_join_their_base():
    assert storage.absolute("b/c.mp4", "/data/a") == "/data/a/b/c.mp4"
    assert storage.absolute("../c.mp4", "file:///data/a%20b") == "/data/c.mp4"
    assert storage.absolute("b c.mp4", "s3://bucket/a/") == "s3://bucket/a/b c.mp4"
    assert storage.absolute("../c.mp4", "s3://bucket/a") == "s3://bucket/c.mp4"
    assert storage.absolute("/data/c.mp4", "s3://bucket/a") == "/data/c.mp4"
    assert storage.absolute("gs://b/c.mp4", "/data") == "gs://b/c.mp4"


def test_the_last_slash_of_a_remote_folder_is_no_part_of_its_name():
    assert storage.absolute("s3://bucket/out/") == "s3://bucket/out"
    assert storage.absolute("s3://bucket/") == "s3://bucket"


def test_links_count_as_what_they_lead_to(tmp_path):
    folder, elsewhere = tmp_path / "table", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "blob").write_bytes(b"1")
    (folder / "b.parquet").write_bytes(b"2")
    (folder / "a.parquet").symlink_to(elsewhere / "blob")
    (folder / "c").symlink_to(elsewhere)
    assert storage.files_in(str(folder)) == [f"{folder}/a.parquet", f"{folder}/b.parquet"]


def test_an_unknown_scheme_or_a_missing_package_is_refused_with_the_next_step():
    with pytest.raises(Refused, match=r"gs:// needs the package gcsfs.*pip install gcsfs.*runtime_env.yaml"):
        storage.filesystem_of("gs://bucket/a.mp4")
    with pytest.raises(Refused, match=r"ftp://host/a: ftp:// cannot be read; use a local path, file:// or"):
        storage.filesystem_of("ftp://host/a")
    assert failure("ftp://host/a").code == ErrorCode.NOT_FOUND


def test_local_files_that_cannot_be_videos_fail_at_fetch(tmp_path):
    assert failure(str(tmp_path / "none.mp4")).code == ErrorCode.NOT_FOUND
    assert failure(str(tmp_path / "nul\0.mp4")).code == ErrorCode.NOT_FOUND
    assert failure(str(tmp_path / ("x" * 300))).code in (ErrorCode.NOT_FOUND, ErrorCode.INTERNAL)
    (tmp_path / "file").write_bytes(b"")
    assert failure(str(tmp_path / "file/a.mp4")).code == ErrorCode.NOT_FOUND
    folder = failure(str(tmp_path))
    assert (folder.code, folder.message) == (
        ErrorCode.NOT_A_VIDEO,
        f"{tmp_path}: is a folder, expected a file",
    )
    os.mkfifo(tmp_path / "pipe.mp4")
    assert failure(str(tmp_path / "pipe.mp4")).code == ErrorCode.NOT_A_VIDEO


def test_a_file_without_read_permission_is_forbidden(tmp_path):
    secret = tmp_path / "a.mp4"
    secret.touch(mode=0o000)
    with without_root_rights():
        error = failure(str(secret))
    assert (error.code, error.message) == (ErrorCode.FORBIDDEN, f"{secret}: Permission denied")


def test_a_file_over_the_limit_is_too_large_and_one_at_the_limit_is_not(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(bytes(100))
    with storage.fetch(str(file), 100, 10) as path:
        assert path.stat().st_size == 100
    error = failure(str(file), max_bytes=99)
    assert error.code == ErrorCode.TOO_LARGE
    assert "100 bytes, more than the limit of 99" in error.message
    with pytest.raises(storage.TooLargeError):
        storage.read_bytes(str(file), max_bytes=99)


def test_an_empty_file_is_fetched_for_the_decoder_to_judge(tmp_path, bucket):
    (tmp_path / "a.mp4").touch()
    storage.write_bytes_atomically(f"{bucket}/a.mp4", b"")
    for uri in (str(tmp_path / "a.mp4"), f"{bucket}/a.mp4"):
        with storage.fetch(uri, LIMIT, 10) as path:
            assert path.stat().st_size == 0


def test_what_is_not_in_the_object_store_or_too_large_fails_at_fetch(bucket):
    storage.write_bytes_atomically(f"{bucket}/folder/a.mp4", bytes(100))
    assert failure(f"{bucket}/none.mp4").code == ErrorCode.NOT_FOUND
    assert failure("s3://no-such-bucket/a.mp4").code == ErrorCode.NOT_FOUND
    assert failure(f"{bucket}/folder").code == ErrorCode.NOT_A_VIDEO
    assert failure(f"{bucket}/folder/a.mp4", max_bytes=99).code == ErrorCode.TOO_LARGE
    assert not storage.exists(f"{bucket}/none.mp4")


def test_a_large_object_arrives_whole_over_several_requests(bucket):
    data = os.urandom(2 * storage.CHUNK_BYTES + 17)
    storage.write_bytes_atomically(f"{bucket}/big.mp4", data)
    with storage.fetch(f"{bucket}/big.mp4", len(data), 60) as path:
        assert path.read_bytes() == data


def test_a_store_without_credentials_is_forbidden(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    error = failure("s3://catalogue/a.mp4")
    s3fs.S3FileSystem.clear_instance_cache()
    assert error.code == ErrorCode.FORBIDDEN
    assert "set AWS_ACCESS_KEY_ID" in error.message


def test_a_store_that_never_answers_ends_at_the_time_limit(monkeypatch, bucket):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, then says nothing
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        error = failure("s3://catalogue/a.mp4", timeout_s=1)
    s3fs.S3FileSystem.clear_instance_cache()
    assert error.code == ErrorCode.INTERNAL
    assert "did not arrive within 1 s" in error.message


def test_writing_replaces_the_whole_file_and_leaves_no_part_behind(tmp_path):
    target = tmp_path / "new folder/run.json"
    storage.write_bytes_atomically(str(target), b"one")
    storage.write_bytes_atomically(target.as_uri(), b"two")
    assert target.read_bytes() == b"two"
    assert list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600


def test_a_failed_write_keeps_the_old_file(tmp_path):
    (tmp_path / "run.json/inside").mkdir(parents=True)  # a folder cannot be replaced by a file
    with pytest.raises(OSError):
        storage.write_bytes_atomically(str(tmp_path / "run.json"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_writable_folder_is_left_as_it_was(tmp_path, bucket):
    storage.check_writable(str(tmp_path / "not/yet/there"))
    storage.check_writable(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    storage.check_writable(f"{bucket}/scores")
    assert storage.files_in(bucket) == []


def test_a_folder_that_cannot_be_written_is_refused_with_the_reason(tmp_path, bucket):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match=r"file/out cannot be written: Not a directory; choose another folder"):
        storage.check_writable(str(tmp_path / "file/out"))
    with pytest.raises(Refused, match=r"s3://no-such-bucket/out cannot be written: .*bucket"):
        storage.check_writable("s3://no-such-bucket/out")


def test_a_folder_without_write_permission_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with (
        without_root_rights(),
        pytest.raises(Refused, match=r"out cannot be written: Permission denied; choose"),
    ):
        storage.check_writable(str(tmp_path / "closed/out"))


def test_a_table_in_an_object_store_is_read_with_its_relative_uris(bucket):
    fs, _ = storage.filesystem_of(bucket)
    table = pa.table({"video_id": ["a", "b"], "video_uri": ["clips/a.mp4", "../b.mp4"]})
    fs.makedirs("catalogue/world", exist_ok=True)
    with fs.open("catalogue/world/videos.parquet", "wb") as file:
        pq.write_table(table, file)
    storage.write_bytes_atomically(f"{bucket}/parts/1.csv", b"video_id,video_uri\n1,a.mp4\n")
    read = read_videos(f"{bucket}/world/videos.parquet")
    assert read["video_uri"].to_pylist() == [f"{bucket}/world/clips/a.mp4", f"{bucket}/b.mp4"]
    assert read_videos(f"{bucket}/parts")["video_uri"].to_pylist() == [f"{bucket}/parts/a.mp4"]
    with pytest.raises(Refused, match=r"s3://catalogue/none.parquet cannot be read"):
        read_videos(f"{bucket}/none.parquet")
