"""One job at a time in an output folder: a lock that no crash can leave shut.

FOLDER/lock-N.json    who writes here: process, host, since when; its owner writes it anew every BEAT_S seconds

Whoever creates lock-N, by a write that fails where it is there already, N one above what is there, has the folder.
A taken lock is taken over where its process is known to be dead (same machine), or where it was not written anew
for STALE_S seconds of this process's own time, so that clocks need not agree. Two that start together: one goes on,
on local disks (O_EXCL) and in stores with conditional writes (S3: If-None-Match). In a store that ignores the
condition both write and read back after SETTLE_S: one goes on unless a write took longer than that. An owner that was
away for STALE_S (a frozen machine) finds at its next heartbeat that another has the folder, and ends.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

import psutil

from catalog import storage
from catalog.errors import Broken, Refused

log = logging.getLogger(__name__)

BEAT_S = 10.0
STALE_S = 60.0
START_ERROR_S = 2.0
"""by which the kernel's words on when a process started differ: it counts the boot in whole seconds"""
POLL_S = 1.0
SETTLE_S = 2.0
NAME = re.compile(r"lock-(\d+)\.json$")


@dataclasses.dataclass(frozen=True)
class Owner:
    """The content of a lock."""

    token: str
    host: str
    machine: str
    """where it is the same, process ids mean the same"""
    pid: int
    started_after_boot_s: float
    """of the process, because ids are used again; by no clock that is ever set"""
    since: str
    heartbeat: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} (last heartbeat {self.heartbeat})"


class FolderLock:
    """``with FolderLock(uri):`` the folder is this job's.

    Raises Refused where another job has it, after at most STALE_S; Broken on leaving where it was lost to another
    job meanwhile, which also interrupts the main thread.
    """

    def __init__(self, folder_uri: str):
        self.folder_uri = folder_uri
        now = _now()
        process = psutil.Process()
        self.owner = Owner(
            uuid.uuid4().hex, socket.gethostname(), _machine(), process.pid, _started_after_boot(process), now, now
        )
        self.uri = ""
        self.lost_to: str | None = None
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="lock", daemon=True)

    def __enter__(self) -> "FolderLock":
        self._acquire()
        self._beats.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._beats.join(storage.CALL_TIMEOUT_S)
        with contextlib.suppress(OSError):
            if self._is_mine(self._owner_of(self.uri)):
                storage.remove(self.uri)
        if self.lost_to is not None:
            raise Broken(
                f"{self.folder_uri} was taken over by {self.lost_to}, because this job gave no sign of life for "
                f"{STALE_S:g} s; let that one end, or stop it and run the same command again"
            ) from error

    def _acquire(self) -> None:
        gone = {uri: self._owner_of(uri) for uri in self._locks()}
        last = max(gone, key=_number, default=None)
        if last is not None and not self._is_gone(last, gone[last]):
            raise self._refusal(self._owner_of(last))
        self.uri = f"{self.folder_uri}/lock-{_number(last) + 1 if last else 1}.json"
        try:
            with contextlib.suppress(FileExistsError):  # which may be our own: a lost answer was asked for again
                storage.create(self.uri, self._content())
        except OSError as error:
            raise Refused(f"{self.folder_uri} cannot be written: {storage.reason(error)}") from error
        if storage.scheme_of(self.folder_uri) != "file":
            time.sleep(SETTLE_S)
        holder = self._owner_of(self.uri)
        if not self._is_mine(holder):
            raise self._refusal(holder)
        others = [uri for uri in self._locks() if uri != self.uri]
        there = {uri: owner for uri in others if (owner := self._owner_of(uri)) is not None}
        if newer := [owner for uri, owner in there.items() if owner != gone.get(uri)]:
            storage.remove(self.uri)  # another came since, maybe under the name of one that is gone
            raise self._refusal(newer[-1])
        for uri in there:
            storage.remove(uri)

    def _is_gone(self, uri: str, first: Owner | str | None) -> bool:
        """Whether nobody stands behind the lock, of which ``first`` was read; waits at most STALE_S for a sign of
        life."""
        if first is None:
            return True
        if isinstance(first, Owner) and first.machine == self.owner.machine:
            return not _lives(first)
        log.info("%s was taken by %s; waiting up to %g s for its next heartbeat", self.folder_uri, first, STALE_S)
        deadline = time.monotonic() + STALE_S
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            now = self._owner_of(uri)
            if now is None:
                return True
            if now != first:
                return False
        return True

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                highest = self._locks()[-1:]
                holder = self._owner_of(highest[0]) if highest else None
                if not self._is_mine(holder):
                    self.lost_to = str(holder or "another job")
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self.owner = dataclasses.replace(self.owner, heartbeat=_now())
                storage.write_bytes_atomically(self.uri, self._content())
            except Exception as error:  # whatever it is: without this thread nobody sees that the folder was lost
                log.warning("no heartbeat in %s: %s: %s", self.folder_uri, type(error).__name__, error)

    def _locks(self) -> list[str]:
        try:
            files = storage.files_in(self.folder_uri) or []
        except FileNotFoundError:
            return []
        return sorted((uri for uri in files if NAME.search(uri)), key=_number)

    def _owner_of(self, uri: str) -> Owner | str | None:
        """None where there is no such lock; its text where that is no owner."""
        try:
            text = storage.read_bytes(uri, timeout_s=storage.CALL_TIMEOUT_S).decode(errors="replace")
        except FileNotFoundError:
            return None
        try:
            return Owner(**json.loads(text))
        except (ValueError, TypeError):  # of a crash in the middle of it, or of another version
            return text

    def _is_mine(self, holder: Owner | str | None) -> bool:
        """By the token: a heartbeat that could not be written is in ``self.owner`` alone."""
        return isinstance(holder, Owner) and holder.token == self.owner.token

    def _content(self) -> bytes:
        return json.dumps(dataclasses.asdict(self.owner), indent=2).encode()

    def _refusal(self, holder: Owner | str | None) -> Refused:
        who = holder if isinstance(holder, Owner) else "another job that has just begun"
        return Refused(
            f"{self.folder_uri} is being written to by {who}; wait for its end, stop it, or give another folder"
        )


def _number(uri: str) -> int:
    found = NAME.search(uri)
    assert found is not None
    return int(found[1])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _machine() -> str:
    """Of this boot and, in containers, this one's processes."""
    namespace = Path("/proc/self/ns/pid")
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not (namespace.exists() and boot.exists()):
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()} {namespace.stat().st_ino}"


def _lives(owner: Owner) -> bool:
    try:
        process = psutil.Process(owner.pid)
        same = abs(_started_after_boot(process) - owner.started_after_boot_s) < START_ERROR_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _started_after_boot(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()
