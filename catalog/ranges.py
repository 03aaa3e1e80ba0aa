"""A remote video of which only what its decoder reads is fetched."""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec

from catalog import storage

BLOCK_BYTES = 2 * 2**20
WHOLE_BELOW_BYTES = 4 * BLOCK_BYTES
"""a smaller file is copied as it is: its decoder reads most of it"""


class RemoteFile(io.RawIOBase):
    """Read-only and seekable; what was read is kept in a sparse temporary file, so that no byte is asked for twice.

    ``problem``: the first error of the storage, which a decoder may have taken for a file that is cut off.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, uri: str, size: int, timeout_s: float):
        self.fs, self.path, self.name, self.size, self.left_s = fs, path, uri, size, timeout_s
        self.waited_s = self.core_s = 0.0
        self.problem: Exception | None = None
        self._kept = tempfile.TemporaryFile(prefix="video-")  # noqa: SIM115 (closed with this one)
        self._blocks: set[int] = set()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        end = min(self._at + len(buffer), self.size)
        if end <= self._at:
            return 0
        for block in range(self._at // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            if block not in self._blocks:
                self._fetch(block)
        data = os.pread(self._kept.fileno(), end - self._at, self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._kept.close()
        super().close()

    def _fetch(self, block: int) -> None:
        start, begun, begun_core = block * BLOCK_BYTES, time.monotonic(), time.process_time()
        try:
            if self.left_s <= 0:
                raise TimeoutError("the storage took too long")
            end = min(start + BLOCK_BYTES, self.size)
            data = storage.call(self.fs, "cat_file", self.path, start=start, end=end, timeout_s=self.left_s)
        except Exception as error:
            self.problem = self.problem or error
            raise
        finally:
            waited = time.monotonic() - begun
            self.left_s, self.waited_s = self.left_s - waited, self.waited_s + waited
            self.core_s += time.process_time() - begun_core
        os.pwrite(self._kept.fileno(), data, start)
        self._blocks.add(block)


@contextlib.contextmanager
def opened(uri: str, max_bytes: int, timeout_s: float, whole: bool = False) -> Iterator[Path | RemoteFile]:
    """What a decoder reads: a path as by ``storage.fetch``, or of a large remote file one that fetches what is read.

    whole: a path always. VideoError at Stage.FETCH as ``storage.fetch`` raises it, also where the storage failed while
    the decoder read; ``timeout_s``: of waiting for the storage.
    """
    remote = None if whole or storage.scheme_of(uri) == "file" else _remote(uri, max_bytes, timeout_s)
    if remote is None:
        with storage.fetch(uri, max_bytes, timeout_s) as path:
            yield path
        return
    with remote:
        try:
            yield remote
        except Exception:
            if remote.problem is None:
                raise
        if remote.problem is not None:
            raise storage.fetch_error(uri, remote.problem) from remote.problem


def _remote(uri: str, max_bytes: int, timeout_s: float) -> RemoteFile | None:
    """None where the file is to be copied, or where ``storage.fetch`` has a better word on it."""
    try:
        fs, path = storage.filesystem_of(uri)
        info = storage.call(fs, "info", path, timeout_s=timeout_s)
    except Exception as error:
        raise storage.fetch_error(uri, error) from error
    if info["type"] == "directory" or not WHOLE_BELOW_BYTES <= info["size"] <= max_bytes:
        return None
    return RemoteFile(fs, path, uri, info["size"], timeout_s)
