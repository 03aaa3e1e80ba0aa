"""One job at a time in a folder, on a disk and in an object store, whatever became of the one before."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from test_storage import bucket, s3_server  # noqa: F401

from catalog import lock as locks
from catalog import storage
from catalog.errors import Broken, Refused
from catalog.lock import FolderLock, Owner

HOLD = """
import sys, time
from catalog.lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(locks, "SETTLE_S", 0.1)
    monkeypatch.setattr(locks, "POLL_S", 0.05)
    return str(tmp_path / "out") if request.param == "disk" else f"{request.getfixturevalue('bucket')}/out"


def locks_in(folder: str) -> list[str]:
    try:
        return [uri.rsplit("/", 1)[-1] for uri in storage.files_in(folder) or []]
    except FileNotFoundError:
        return []


def elsewhere(lock: FolderLock) -> None:
    """As if the lock's owner ran on another machine: only its heartbeats tell that it lives."""
    lock.owner = dataclasses.replace(lock.owner, machine="another", host="node-7", pid=1)


def test_a_second_job_is_refused_and_told_who_has_the_folder(folder: str):
    with FolderLock(folder) as first:
        with pytest.raises(Refused) as refused, FolderLock(folder):
            pass
        message = str(refused.value)
        assert folder in message
        assert f"process {first.owner.pid} on {first.owner.host} since {first.owner.since}" in message
        assert f"last heartbeat {first.owner.heartbeat}" in message
        assert "give another folder" in message
        assert locks_in(folder) == ["lock-1.json"]
    assert locks_in(folder) == []
    with FolderLock(folder):
        pass


def test_of_many_that_start_together_exactly_one_goes_on(folder: str):
    start, outcomes = threading.Barrier(8), []

    def job() -> None:
        start.wait()
        try:
            with FolderLock(folder):
                outcomes.append("has it")
                time.sleep(1)
        except Refused:
            outcomes.append("refused")

    jobs = [threading.Thread(target=job) for _ in range(8)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert sorted(outcomes) == ["has it"] + ["refused"] * 7
    assert locks_in(folder) == []


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(
    folder: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "STALE_S", 1e9)
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=root, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "held\n"
        with pytest.raises(Refused, match=f"process {job.pid}"), FolderLock(folder):
            pass
        job.kill()  # it stays a zombie, which is dead too
        os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
        with FolderLock(folder) as taken:
            assert taken.uri.endswith("lock-2.json")
            assert locks_in(folder) == ["lock-2.json"]


def test_another_process_with_the_dead_one_s_id_does_not_keep_the_folder(folder: str):
    dead = FolderLock(folder)
    dead.owner = dataclasses.replace(dead.owner, started_after_boot_s=dead.owner.started_after_boot_s - 1000)
    dead._acquire()
    with FolderLock(folder):
        pass


def test_a_living_job_keeps_the_folder_when_the_clock_is_set(folder: str, monkeypatch: pytest.MonkeyPatch):
    with FolderLock(folder):
        at, boot = psutil.Process.create_time, psutil.boot_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: at(process) + 3600)
        monkeypatch.setattr(psutil, "boot_time", lambda: boot() + 3600)
        with pytest.raises(Refused, match=f"process {os.getpid()}"), FolderLock(folder):
            pass


def test_a_lock_that_came_under_the_name_of_one_that_is_gone_is_not_removed(
    folder: str, monkeypatch: pytest.MonkeyPatch
):
    first, late, fast = FolderLock(folder), FolderLock(folder), FolderLock(folder)
    first._acquire()
    judged = FolderLock._is_gone

    def meanwhile(lock: FolderLock, uri: str, owner: Owner | str | None) -> bool:
        monkeypatch.setattr(FolderLock, "_is_gone", judged)
        storage.remove(first.uri)
        fast._acquire()
        return True

    monkeypatch.setattr(FolderLock, "_is_gone", meanwhile)
    with pytest.raises(Refused, match="is being written to by"):
        late._acquire()
    assert locks_in(folder) == ["lock-1.json"]
    assert fast._is_mine(fast._owner_of(f"{folder}/lock-1.json"))


def test_a_lock_whose_creation_was_not_answered_is_the_jobs_own(folder: str, monkeypatch: pytest.MonkeyPatch):
    created = storage.create

    def asked_again(uri: str, data: bytes) -> None:
        for _ in range(2):
            created(uri, data)

    monkeypatch.setattr(storage, "create", asked_again)
    with FolderLock(folder), pytest.raises(Refused, match="is being written to by process"), FolderLock(folder):
        pass


def test_a_job_of_another_machine_keeps_the_folder_while_its_heart_beats(folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.2)
    monkeypatch.setattr(locks, "STALE_S", 60)
    monkeypatch.setattr(locks, "_now", lambda: str(time.time_ns()))
    far = FolderLock(folder)
    elsewhere(far)
    with far, pytest.raises(Refused, match="process 1 on node-7"), FolderLock(folder):
        pass


def test_a_job_of_another_machine_that_fell_silent_loses_the_folder_and_ends_when_it_wakes(
    folder: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(locks, "STALE_S", 0.5)
    frozen = FolderLock(folder)
    elsewhere(frozen)
    frozen._acquire()
    with FolderLock(folder) as taken:
        monkeypatch.setattr(locks, "BEAT_S", 0.05)
        with pytest.raises(Broken, match=f"taken over by process {taken.owner.pid}"), ExitStack() as waking:
            waking.push(frozen)
            frozen._beats.start()
            time.sleep(60)
        assert locks_in(folder) == ["lock-2.json"]


def test_no_error_ends_the_heartbeat(folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    monkeypatch.setattr(locks, "_now", lambda: str(time.time_ns()))
    failed = threading.Semaphore(0)

    def fails(uri: str, data: bytes) -> None:
        failed.release()
        raise RuntimeError("of a client library")

    with FolderLock(folder) as lock:
        with monkeypatch.context() as outage:
            outage.setattr(storage, "write_bytes_atomically", fails)
            assert failed.acquire(timeout=30) and failed.acquire(timeout=30)
        last = lock._owner_of(lock.uri)
        while lock._owner_of(lock.uri) == last and lock._beats.is_alive():
            time.sleep(0.05)
        assert lock._beats.is_alive() and lock.lost_to is None


@pytest.mark.parametrize("text", ["", "{", json.dumps({"pid": 1}), "[]"])
def test_a_lock_that_says_nothing_is_taken_over_after_the_time_out(
    folder: str, monkeypatch: pytest.MonkeyPatch, text: str
):
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    storage.write_bytes_atomically(f"{folder}/lock-7.json", text.encode())
    with FolderLock(folder):
        assert locks_in(folder) == ["lock-8.json"]


def test_in_a_store_that_ignores_conditions_the_first_of_two_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    second = FolderLock(str(tmp_path))

    def careless(uri: str, data: bytes) -> None:
        storage.write_bytes_atomically(uri, data)
        storage.write_bytes_atomically(uri, second._content())

    monkeypatch.setattr(storage, "create", careless)
    with pytest.raises(Refused, match="is being written to"), FolderLock(str(tmp_path)):
        pass
    assert locks_in(str(tmp_path)) == ["lock-1.json"]


def test_files_of_other_names_are_no_locks(folder: str):
    storage.write_bytes_atomically(f"{folder}/config.json", b"{}")
    with FolderLock(folder):
        assert locks_in(folder) == ["config.json", "lock-1.json"]
    assert locks_in(folder) == ["config.json"]
