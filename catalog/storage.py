"""Files wherever they are: local paths, file:// URIs and object stores, through fsspec.

A bare path is taken literally ("#", "%20" and spaces are parts of names); only file:// URIs are
percent-decoded (RFC 8089). Credentials and endpoints come from the environment alone, for S3
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL.
"""

import contextlib
import hashlib
import importlib.util
import io
import os
import posixpath
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from catalog.errors import ErrorCode, Refused, Stage, VideoError

PACKAGE_OF_SCHEME = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
CHUNK_BYTES = 8 * 2**20
CALL_TIMEOUT_S = 30.0
WRITE_TIMEOUT_S = 120.0
LIST_TIMEOUT_S = 1800.0
"""of a whole folder: an S3 client takes some 0.15 s a thousand files"""
FINGERPRINT_SAMPLE_BYTES = 1 << 17
PART = re.compile(r"\.[0-9a-f]{32}\.part")
"""a local file that is being written"""
REMOTE_FINGERPRINT = ("ETag", "etag", "md5Hash", "content_md5", "size", "LastModified", "updated")

_S3_OPTIONS = {
    "config_kwargs": {
        "connect_timeout": 5,
        "read_timeout": 30,
        "retries": {"max_attempts": 5, "mode": "standard"},  # waits up to 1, 2, 4, 8 s, as AWS asks of clients
    }
}
_S3_ATTEMPTS = 3  # s3fs repeats, on top of botocore's own attempts; it alone repeats a body that was cut


class _Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


class TooLargeError(OSError):
    """The file is larger than the caller allows."""


def scheme_of(uri: str) -> str:
    """``"s3"`` for ``s3://...``; ``"file"`` for file:// URIs and for bare paths."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return match.group(1).lower() if match else "file"


def check_scheme(uri: str) -> None:
    """Refused where the scheme of ``uri`` is unknown, its package not installed, or its host not this one."""
    scheme = scheme_of(uri)
    if scheme == "file":
        _local_path(uri)
        return
    if scheme not in PACKAGE_OF_SCHEME:
        known = ", ".join(f"{name}://" for name in PACKAGE_OF_SCHEME)
        raise Refused(f"{uri}: {scheme}:// cannot be read; use a local path, file:// or one of {known}")
    package = PACKAGE_OF_SCHEME[scheme]
    if importlib.util.find_spec(package) is None:
        raise Refused(
            f"{uri}: {scheme}:// needs the package {package}, which is not installed;"
            f" run 'pip install {package}' here and add it to runtime_env.yaml for the cluster"
        )


def filesystem_of(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that holds ``uri`` and the path inside it, as Ray Data and pyarrow take them.

    Refused: an unknown scheme, or one whose package is not installed.
    """
    check_scheme(uri)
    scheme = scheme_of(uri)
    if scheme == "file":
        return LocalFileSystem(), _local_path(uri)
    is_s3 = PACKAGE_OF_SCHEME[scheme] == "s3fs"
    fs = fsspec.filesystem(scheme, use_listings_cache=False, **(_S3_OPTIONS if is_s3 else {}))
    if is_s3:
        fs.retries = _S3_ATTEMPTS
    return fs, str(fs._strip_protocol(uri))


def absolute(uri: str, base: str = "") -> str:
    """``uri`` so that it means the same from any directory and node.

    A relative path is resolved against the folder ``base`` (a path or URI; default: the current
    directory). Local results are plain absolute paths, remote ones keep their scheme; a remote folder's
    last "/" is dropped.
    """
    if scheme_of(uri) != "file":
        scheme, _, path = uri.partition("://")
        return f"{scheme}://{path.rstrip('/')}"
    if uri.startswith("/") or uri.lower().startswith("file://"):
        return _local_path(uri)
    if scheme_of(base) == "file":
        return os.path.abspath(os.path.join(_local_path(base), uri))  # noqa: PTH100, PTH118
    scheme, _, folder = base.partition("://")
    joined = f"{folder.rstrip('/')}/{uri}"
    if {".", ".."} & set(joined.split("/")):  # object stores do not know these
        joined = posixpath.normpath(joined)
    return f"{scheme}://{joined}"


def exists(uri: str) -> bool:
    """Whether a file or folder is there. OSError where that cannot be told (no permission, no network)."""
    fs, path = filesystem_of(uri)
    try:
        _info(fs, path, CALL_TIMEOUT_S)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def files_in(uri: str) -> list[str] | None:
    """The files directly in the folder, sorted by name, as URIs; None where ``uri`` is a file. OSError.

    Links count as what they lead to.
    """
    return _entries_in(uri, "file")


def folders_in(uri: str) -> list[str] | None:
    """The folders directly in the folder, as ``files_in``."""
    return _entries_in(uri, "directory")


def _entries_in(uri: str, wanted: str) -> list[str] | None:
    fs, path = filesystem_of(uri)
    kind = _info(fs, path, CALL_TIMEOUT_S)["type"]
    if kind == "other":  # a pipe would block for ever
        raise IsADirectoryError("is neither a file nor a folder")
    if kind == "file":
        return None
    entries = call(fs, "ls", path, detail=True, timeout_s=LIST_TIMEOUT_S)
    entries = [_info(fs, entry["name"], CALL_TIMEOUT_S) if entry.get("islink") else entry for entry in entries]
    names = sorted(posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == wanted)
    folder = absolute(uri) if uri.lower().startswith("file://") else uri
    return [f"{folder.rstrip('/')}/{name}" for name in names if name]


def reason(error: OSError) -> str:
    """Why, in words fit for a message that already names the file."""
    if isinstance(error, FileNotFoundError) and error.errno is not None:
        return "no such file"
    return error.strerror or str(error) or type(error).__name__


def check_writable(folder_uri: str) -> None:
    """Refused, with the reason, where files cannot be written under the folder; leaves nothing behind.

    A local folder that does not exist yet is not made: its nearest existing parent is checked.
    """
    fs, path = filesystem_of(folder_uri)
    name = f".write-check-{uuid.uuid4().hex}"
    try:
        if isinstance(fs, LocalFileSystem):
            folder = Path(path)
            while not os.path.lexists(folder):
                folder = folder.parent
            probe = folder / name
            probe.touch(exist_ok=False)
            probe.unlink()
        else:
            call(fs, "pipe_file", f"{path}/{name}", b"", timeout_s=CALL_TIMEOUT_S)
            call(fs, "rm_file", f"{path}/{name}", timeout_s=CALL_TIMEOUT_S)
    except Exception as error:
        why = reason(_as_os_error(error))
        raise Refused(
            f"{folder_uri} cannot be written: {why}; choose another folder or change its permissions"
        ) from error


def read_bytes(uri: str, max_bytes: int | None = None, timeout_s: float = 60.0) -> bytes:
    """The whole file.

    OSError where it cannot be had: FileNotFoundError, PermissionError, IsADirectoryError, TooLargeError,
    TimeoutError (remote files, after ``timeout_s``) and others.
    """
    sink = io.BytesIO()
    _copy(uri, sink, max_bytes, timeout_s)
    return sink.getvalue()


def write_bytes_atomically(uri: str, data: bytes) -> None:
    """Write the file so that readers see the old content or the new, never a part. Makes parent folders. OSError."""
    fs, path = filesystem_of(uri)
    if not isinstance(fs, LocalFileSystem):
        try:
            call(fs, "pipe_file", path, data, timeout_s=WRITE_TIMEOUT_S)  # shows only when complete
        except TimeoutError as error:
            raise TimeoutError(f"{uri} could not be written within {WRITE_TIMEOUT_S:g} s") from error
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def create(uri: str, data: bytes) -> None:
    """Write a file that is not there yet. FileExistsError where it is, also where another process creates it in the
    same moment (a store that has no conditional writes may let both pass). OSError."""
    fs, path = filesystem_of(uri)
    if isinstance(fs, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("xb") as file:
            try:
                file.write(data)
                file.flush()
            except OSError:  # a full disk
                Path(path).unlink()
                raise
        return
    try:
        call(fs, "pipe_file", path, data, mode="create", timeout_s=CALL_TIMEOUT_S)
    except OSError as error:
        if exists(uri):  # each store has its own error for this
            raise FileExistsError(f"{uri} is there already") from error
        raise


def sweep(folder_uri: str) -> None:
    """Remove what writers killed in ``write_bytes_atomically`` left in the folder; nobody may be writing there."""
    if scheme_of(folder_uri) == "file":  # in a store a file shows only when complete
        for part in Path(_local_path(folder_uri)).glob(".*.part"):
            if PART.fullmatch(part.name):
                part.unlink(missing_ok=True)


def remove(uri: str) -> None:
    """Remove the file where it is there. OSError."""
    fs, path = filesystem_of(uri)
    with contextlib.suppress(FileNotFoundError):
        call(fs, "rm_file", path, timeout_s=CALL_TIMEOUT_S)


@contextlib.contextmanager
def fetch(uri: str, max_bytes: int, timeout_s: float) -> Iterator[Path]:
    """A local file with the video's bytes: the file itself where it is local, else a temporary copy.

    The copy never grows beyond ``max_bytes`` and is removed on leaving. VideoError at Stage.FETCH:
    not_found, forbidden, too_large, not_a_video (a folder or a device), internal (network).
    """
    with contextlib.ExitStack() as stack:
        try:
            if scheme_of(uri) == "file":
                path = Path(_local_path(uri))
                _check_size(_local_size(path), max_bytes)
                path.open("rb").close()
            else:
                suffix = re.sub(r"[^.\w]", "", posixpath.splitext(uri)[1])[:16]
                copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="video-", suffix=suffix))
                _copy(uri, copy, max_bytes, timeout_s)
                copy.flush()
                path = Path(copy.name)
        except (Refused, OSError, ValueError) as error:
            raise fetch_error(uri, error) from error
        yield path


def fetch_error(uri: str, error: Exception) -> VideoError:
    """What a storage's error says of a video."""
    if isinstance(error, Refused):
        return VideoError(ErrorCode.NOT_FOUND, str(error), Stage.FETCH)
    cause = _as_os_error(error)
    return VideoError(_code_of(cause), f"{uri}: {reason(cause)}", Stage.FETCH)


def fingerprint(uri: str, timeout_s: float = CALL_TIMEOUT_S) -> str:
    """Names a file's content without reading all of it: of a local file its size and three samples, of a remote one
    what the store says (ETag or checksum, size, time). OSError where there is no such file."""
    if scheme_of(uri) == "file":
        path = Path(_local_path(uri))
        size = _local_size(path)
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - FINGERPRINT_SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(FINGERPRINT_SAMPLE_BYTES))
        return digest.hexdigest()
    try:
        fs, path = filesystem_of(uri)
    except Refused as error:
        raise FileNotFoundError(str(error)) from None
    info = _info(fs, path, timeout_s)
    known = [str(info.get(key)) for key in REMOTE_FINGERPRINT]
    return hashlib.blake2b("|".join(known).encode(), digest_size=16).hexdigest()


def _local_path(uri: str) -> str:
    if uri.lower().startswith("file://"):
        host, slash, path = uri[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise Refused(f"{uri} names the host {host!r}; a local file is written file:///folder/name")
        uri = unquote(slash + path)
    return uri if uri.startswith("/") else os.path.abspath(uri)  # noqa: PTH100


def _copy(uri: str, sink: _Writable, max_bytes: int | None, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        if scheme_of(uri) == "file":
            path = Path(_local_path(uri))
            _check_size(_local_size(path), max_bytes)
            with path.open("rb") as file:  # a finished job's parts are read by the ten thousand
                while chunk := file.read(CHUNK_BYTES):
                    _seconds_left(deadline)
                    sink.write(chunk)
            return
        fs, name = filesystem_of(uri)
        info = _info(fs, name, timeout_s)
        if info["type"] == "directory":
            raise IsADirectoryError("is a folder, expected a file")
        size = info["size"]
        _check_size(size, max_bytes)
        for start in range(0, size, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, size)
            sink.write(call(fs, "cat_file", name, start=start, end=end, timeout_s=_seconds_left(deadline)))
    except TimeoutError as error:
        raise TimeoutError(f"did not arrive within {timeout_s:g} s") from error
    except ValueError as error:
        raise _as_os_error(error) from error


def _seconds_left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def call(fs: fsspec.AbstractFileSystem, method: str, *args: object, timeout_s: float, **options: object) -> Any:
    """A method of a file system, ended after ``timeout_s`` where it is a remote one. OSError, whatever a store's
    client raises."""
    try:
        if isinstance(fs, AsyncFileSystem):  # only the coroutine can be stopped at its time limit
            return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=timeout_s, **options)
        return getattr(fs, method)(*args, **options)
    except Exception as error:
        if (cause := _as_os_error(error)) is error:
            raise
        raise cause from error


def _info(fs: fsspec.AbstractFileSystem, path: str, timeout_s: float) -> dict:
    return call(fs, "info", path, timeout_s=timeout_s)


def _local_size(path: Path) -> int:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError("is a folder, expected a file")
    if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
        raise IsADirectoryError("is not a regular file")
    return status.st_size


def _check_size(size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise TooLargeError(f"has {size:,} bytes, more than the limit of {max_bytes:,}")


def _as_os_error(error: Exception) -> OSError:
    """Object stores' own exceptions, put in the words of the operating system's."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return PermissionError("no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, FSTimeoutError):
        return TimeoutError("the storage did not answer in time")
    if isinstance(error, ValueError):  # a NUL or a lone surrogate in a name
        return FileNotFoundError(f"not a possible file name: {error}")
    if isinstance(error, OSError):
        return error
    return OSError(f"{name}: {error}")


def _code_of(error: OSError) -> ErrorCode:
    match error:
        case TooLargeError():
            return ErrorCode.TOO_LARGE
        case PermissionError():
            return ErrorCode.FORBIDDEN
        case IsADirectoryError():
            return ErrorCode.NOT_A_VIDEO
        case FileNotFoundError() | NotADirectoryError():
            return ErrorCode.NOT_FOUND
        case _:
            return ErrorCode.INTERNAL
