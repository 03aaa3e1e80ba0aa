"""A video that kills the process that works on it costs itself alone, in the end, whoever else dies meanwhile."""

from pathlib import Path

import pytest

import scoring.attempts
from catalog import storage
from catalog.errors import Broken, ErrorCode, Stage, VideoError
from scoring.attempts import MAX_TRIES, Attempts, StopSign
from scoring.tally import Tally, check_quarantine


class Died(BaseException):
    """As a killed process: nothing after it runs."""


def begin_and_die(attempts: Attempts, video_ids: list[str], at: str) -> None:
    with pytest.raises(Died), attempts.block(Stage.DECODE, video_ids) as alone:
        for video_id in video_ids:
            if alone:
                with attempts.video(Stage.DECODE, video_id):
                    if video_id == at:
                        raise Died
            elif video_id == at:
                raise Died


def quarantined(attempts: Attempts, video_id: str) -> bool:
    try:
        with attempts.video(Stage.DECODE, video_id):
            return False
    except VideoError as error:
        assert error.code == ErrorCode.QUARANTINED
        assert f"died {MAX_TRIES} times" in error.message
        return True


def files(folder: Path) -> list[str]:
    return sorted(p.name.rsplit("-", 1)[0] for p in (folder / "attempts").glob("*"))


def test_a_block_that_is_done_leaves_nothing(tmp_path: Path):
    attempts = Attempts(str(tmp_path))
    for _ in range(2):
        with attempts.block(Stage.DECODE, ["a", "b"]) as alone:
            assert not alone
            assert files(tmp_path) == ["decode-block"]
    assert files(tmp_path) == []


def test_a_video_that_kills_its_process_is_quarantined_and_its_neighbours_are_not(tmp_path: Path):
    attempts = Attempts(str(tmp_path))
    begin_and_die(attempts, ["a", "b", "c"], at="b")  # nobody knows yet which it was
    for _ in range(MAX_TRIES):
        assert not quarantined(attempts, "a")
        begin_and_die(attempts, ["a", "b", "c"], at="b")
    assert quarantined(attempts, "b")
    assert not quarantined(attempts, "a")
    assert not quarantined(attempts, "c")


def test_a_video_that_came_through_in_between_starts_anew(tmp_path: Path):
    attempts = Attempts(str(tmp_path))
    begin_and_die(attempts, ["a"], at="a")
    for _ in range(MAX_TRIES - 1):
        begin_and_die(attempts, ["a"], at="a")
    assert not quarantined(attempts, "a")  # came through
    for _ in range(MAX_TRIES):
        begin_and_die(attempts, ["a"], at="a")
    assert quarantined(attempts, "a")


def test_a_later_job_with_other_blocks_knows_whom_to_suspect(tmp_path: Path):
    attempts = Attempts(str(tmp_path))
    begin_and_die(attempts, ["a", "b"], at="b")
    begin_and_die(attempts, ["c", "d"], at="c")
    for job in range(MAX_TRIES):
        later = Attempts(str(tmp_path)).resumed(["b", "c", "e"], frozenset())  # a and d were written meanwhile
        assert later.suspects == {"b", "c"}
        begin_and_die(later, ["b", f"other {job}"], at="b")
    later = Attempts(str(tmp_path)).resumed(["b", "c", "e"], frozenset())
    assert quarantined(later, "b")
    with later.block(Stage.DECODE, ["e"]) as alone:
        assert not alone


def test_a_worker_of_the_job_before_may_still_be_done_with_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    attempts = Attempts(str(tmp_path))
    begin_and_die(attempts, ["a"], at="a")
    begin_and_die(attempts, ["b"], at="b")
    listed = storage.files_in

    def and_then_one_is_gone(uri: str) -> list[str] | None:
        uris = listed(uri)
        with attempts.block(Stage.DECODE, ["a"]):
            pass
        return uris

    monkeypatch.setattr(storage, "files_in", and_then_one_is_gone)
    assert attempts.resumed(["a", "b"], frozenset()).suspects == {"b"}


def test_a_retried_video_has_a_clean_slate_and_a_finished_job_leaves_nothing(tmp_path: Path):
    attempts = Attempts(str(tmp_path))
    for _ in range(1 + MAX_TRIES):
        begin_and_die(attempts, ["a"], at="a")
    assert quarantined(attempts.resumed(["a"], frozenset()), "a")
    retried = attempts.resumed(["a"], frozenset({"a"}))
    assert retried.suspects == frozenset()
    assert not quarantined(retried, "a")
    retried.forget()
    assert files(tmp_path) == []


def test_too_many_quarantined_videos_are_the_nodes_fault():
    tally = Tally()
    tally.done, tally.errors[ErrorCode.QUARANTINED] = 100, 20
    check_quarantine(tally, 600)
    tally.errors[ErrorCode.QUARANTINED] = 21
    with pytest.raises(Broken, match=r"21 of 100 videos were quarantined.*--retry-failed"):
        check_quarantine(tally, 600)
    check_quarantine(tally, 100_000)


def test_a_stop_is_seen_until_the_next_job_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring.attempts, "LOOK_S", 0.0)
    attempts, stop = Attempts(str(tmp_path)), StopSign(Attempts(str(tmp_path)))
    assert not stop()
    attempts.ask_to_stop()
    assert stop()
    attempts.resumed([], frozenset())
    assert not stop()
    attempts.ask_to_stop()
    attempts.forget()
    assert not stop()
    assert not StopSign(None)()


def test_a_store_is_not_asked_at_every_video_whether_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring.attempts, "LOOK_S", 0.0)
    monkeypatch.setattr(scoring.attempts, "LOOK_IN_STORE_S", 1e9)
    asked = list[str]()
    monkeypatch.setattr(storage, "exists", lambda uri: bool(asked.append(uri)))
    stop = StopSign(Attempts("s3://bucket/out"))
    assert not any(stop() for _ in range(5))
    assert asked == ["s3://bucket/out/stop"]
