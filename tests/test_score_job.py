"""The scoring job on a real local Ray: one row a video whatever happens to it, resumed and never mixed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mixed_catalogue import ROOT, Catalogue, make_catalogue, write_clip, write_strange_card
from mlflow import MlflowClient

from catalog.errors import Refused
from catalog.lock import FolderLock
from catalog.schemas import MAPS, SCORES
from jobs.command import run_job
from jobs.score import ScoreConfig, main
from jobs.steps.score import warn_of_shared_images
from scoring.output import read_scores

pytestmark = pytest.mark.timeout(900)

FIRST_FLAGS = ["--max-duration", "5", "--max-seconds", "3"]
BROKEN = {
    "empty": "not_a_video",
    "text": "not_a_video",
    "truncated": "truncated",
    "audio_only": "no_video_stream",
    "missing": "not_found",
    "too_long": "too_long",
    "image_missing": "no_product_image",
    "image_corrupt": "bad_product_image",
    "image_blank": "bad_product_image",
}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return make_catalogue(tmp_path_factory.mktemp("catalogue"))


@pytest.fixture(scope="module")
def scored(catalogue: Catalogue) -> subprocess.CompletedProcess[str]:
    """The first run over the whole mixed catalogue, with maps, its settings from a file and a flag."""
    settings = {"max-duration": 5, "max-seconds": 1, "max_failed_fraction": 0.1, "save-maps": True}
    (catalogue.folder / "settings.yaml").write_text(json.dumps(settings))
    return catalogue.score(*first_command(catalogue))


def first_command(catalogue: Catalogue) -> list[str]:
    return [
        *catalogue.flags("mixed", examined=8),
        "--config",
        f"{catalogue.folder}/settings.yaml",
        "--max-seconds",
        "3",
    ]


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    rows = read_scores(str(output)).to_pylist()
    by_id = {row["video_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def input_ids(catalogue: Catalogue, videos: str = "videos") -> set[str]:
    return set(pq.read_table(catalogue.folder / f"{videos}.parquet")["video_id"].to_pylist())


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_summary_adds_up(output: Path) -> None:
    summary, rows = json.loads((output / "run.json").read_text()), rows_of(output).values()
    assert summary["rows"] == len(rows)
    assert {k: n for k, n in summary["videos"].items() if n} == counted(row["status"] for row in rows)
    assert summary["errors"] == counted(row["error_code"] for row in rows if row["error_code"])


def counted(values: Iterable[str]) -> dict[str, int]:
    listed = list(values)
    return {value: listed.count(value) for value in sorted(set(listed))}


def test_every_video_has_one_row_with_the_right_status(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    rows = rows_of(catalogue.folder / "mixed")
    assert rows.keys() == input_ids(catalogue)
    assert read_scores(f"{catalogue.folder}/mixed").schema.names == SCORES.names
    for name, code in BROKEN.items():
        assert (rows[name]["status"], rows[name]["error_code"]) == ("failed", code), rows[name]["error_message"]
        assert rows[name]["error_message"]
        assert rows[name]["error_stage"] == (
            "locate" if name.startswith("image") else "fetch" if name == "missing" else "decode"
        )
        assert rows[name]["pe_score"] is None
        assert rows[name]["e_score"] is None
    healthy = {name: row for name, row in rows.items() if name not in BROKEN}
    for row in healthy.values():
        assert (row["error_code"], row["error_message"], row["error_stage"]) == (None, None, None)
    for name, truth in catalogue.truth.items():
        assert rows[name]["status"] in ("ok", "not_localised")
        plain = [s >= 0.05 and not hidden for s, hidden in zip(truth["product_share"], truth["occluded"], strict=True)]
        if any(plain):
            assert rows[name]["status"] == "ok"
    assert sum(row["status"] == "ok" for row in rows.values()) >= 3
    assert {name for name, row in rows.items() if row["status"] == "no_product"} == {"no_product", "one_frame"}
    assert rows["stranger"]["status"] == "not_localised"


def test_an_image_of_two_products_is_warned_of(capsys: pytest.CaptureFixture):
    warn_of_shared_images({"a": (("a.jpg", "a.jpg"), None), "b": (("b.jpg",), None)})
    assert capsys.readouterr().out == ""
    warn_of_shared_images({"a": (("a.jpg", "x.jpg"), None), "b": (("x.jpg",), None), "c": (("c.jpg",), None)})
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("warning: 1 product images belong to several products, such as x.jpg to a, b;")


def test_scores_of_every_row_hang_together(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    rows = rows_of(catalogue.folder / "mixed")
    for name, row in rows.items():
        if row["status"] == "failed":
            continue
        assert row["seconds"] == (1 if name == "one_frame" else 3)  # the flag's 3, not the file's 1
        assert len(row["e_per_second"]) == row["seconds"]
        assert np.mean(row["e_per_second"]) == pytest.approx(row["e_score"], rel=1e-5)
        assert (row["width"], row["height"]) == ((64, 64) if name == "one_frame" else (360, 640))
        assert row["codec"] == "h264"
        assert np.isfinite(row["predicted_engagement"])
        if row["status"] == "no_product":
            for column in ("pe_score", "p_score", "pe_score_raw", "e_on_product", "pe_per_second", "product_quads"):
                assert row[column] is None
            continue
        for score in ("pe", "p"):
            assert np.mean(row[f"{score}_per_second"]) == pytest.approx(row[f"{score}_score"], rel=1e-5, abs=1e-12)
        found = [quad is not None for quad in row["product_quads"]]
        assert len(found) == len(row["product_inliers"]) == 3
        assert [n > 0 for n in row["product_inliers"]] == found
        assert [p > 0 for p in row["product_probability"]] == found
        assert any(found) == (row["status"] == "ok")
        if row["status"] == "ok":
            assert row["pe_score"] == pytest.approx(row["e_on_product"] * row["p_score"])
            assert 0 < row["pe_score"] < row["e_score"]
        else:
            assert (row["pe_score"], row["p_score"], row["pe_score_raw"], row["e_on_product"]) == (0, 0, 0, None)
    assert rows["stranger"]["e_score_raw"] == pytest.approx(rows["no_product"]["e_score_raw"], rel=1e-5)


def test_provenance_is_the_same_in_every_row(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    rows = rows_of(catalogue.folder / "mixed").values()
    summary = json.loads((catalogue.folder / "mixed" / "run.json").read_text())
    for column in ("model_uri", "model_version", "run_id", "config_hash", "code_version"):
        assert {row[column] for row in rows} == {summary["provenance"][column]}
        assert summary["provenance"][column]
    assert summary["config"]["max_seconds"] == 3


def test_run_json_says_why_products_were_not_found(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    summary = json.loads((catalogue.folder / "mixed" / "run.json").read_text())
    # the stranger's three seconds, and at least one of them mirrored
    assert summary["product_rejections"]["few_matches"] >= 4
    assert summary["config"]["max_duration"] == 5


def test_too_many_failed_videos_exit_with_3_and_are_named(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    assert scored.returncode == 3, scored.stdout + scored.stderr
    assert "failed, not_a_video: 2" in scored.stdout
    assert "--retry-failed" in scored.stdout
    assert "Traceback" not in scored.stdout + scored.stderr
    assert_summary_adds_up(catalogue.folder / "mixed")


def test_the_run_is_in_mlflow(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    summary = json.loads((catalogue.folder / "mixed" / "run.json").read_text())
    client = MlflowClient(catalogue.env["MLFLOW_TRACKING_URI"])
    run = client.get_run(summary["provenance"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["videos/ok"] == summary["videos"]["ok"]
    assert run.data.metrics["videos/failed"] == len(BROKEN)
    assert run.data.metrics["core_seconds_per_video_minute"] > 0
    assert run.data.params["max_seconds"] == "3.0"
    assert "dry_run" not in run.data.params  # nor any other that changes no score
    course = client.get_metric_history(run.info.run_id, "progress/videos_done")
    assert course[-1].value == summary["rows"]
    assert [(point.step, point.value) for point in course] == sorted((point.step, point.value) for point in course)
    assert run.data.tags["catalogue"] == f"{catalogue.folder.name}/videos"
    assert f"**{summary['rows']} videos of {catalogue.folder.name}/videos**" in run.data.tags["mlflow.note.content"]


def test_the_run_carries_its_page_tables_and_plots(
    catalogue: Catalogue, scored: subprocess.CompletedProcess, tmp_path: Path
):
    summary = json.loads((catalogue.folder / "mixed" / "run.json").read_text())
    client, run_id = MlflowClient(catalogue.env["MLFLOW_TRACKING_URI"]), summary["provenance"]["run_id"]
    kept = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    assert {str(path.relative_to(kept)) for path in kept.rglob("*.*")} == {
        "run.json", "report.html", "plots/time.png", "plots/space.png",
        "tables/highest_pe.csv", "tables/lowest_pe.csv", "tables/failed.csv",
    }  # fmt: skip
    assert f"PE-scores of {summary['rows']} videos" in (kept / "report.html").read_text()
    failed = (kept / "tables" / "failed.csv").read_text().splitlines()
    assert len(failed) == 1 + len(BROKEN)
    highest, lowest = ((kept / "tables" / f"{end}_pe.csv").read_text().splitlines() for end in ("highest", "lowest"))
    assert highest[1:] != lowest[1:] and sorted(highest) == sorted(lowest)


def test_a_few_maps_are_examined(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    evidence = json.loads((catalogue.folder / "mixed" / "run.json").read_text())["faithfulness"]
    assert 1 <= evidence["videos"] <= -(-len(input_ids(catalogue)) // 10)
    assert [gain["what"] for gain in evidence["gains"]] == ["deletion", "insertion"]
    assert list(evidence["randomised"]) == ["stem"]
    assert evidence["core_seconds"] > 0
    assert "with all weights drawn anew E is another map" in scored.stdout


def test_saved_maps_agree_with_the_scores(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    rows = rows_of(catalogue.folder / "mixed")
    parts = sorted((catalogue.folder / "mixed" / "maps").glob("*.parquet"))
    maps = [row for part in parts for row in pq.read_table(part, schema=MAPS).to_pylist()]
    assert sorted(m["video_id"] for m in maps) == sorted(n for n, row in rows.items() if row["status"] != "failed")
    for saved in maps:
        row = rows[saved["video_id"]]
        levels = np.frombuffer(saved["e_uint8"], np.uint8).reshape(saved["seconds"], saved["height"], saved["width"])
        assert levels.shape == (row["seconds"], 64, 64)
        assert (levels.min(), levels.max()) == (0, 255)
        E = saved["e_min"] + levels / 255 * (saved["e_max"] - saved["e_min"])
        step = (saved["e_max"] - saved["e_min"]) / 255
        assert E.mean() == pytest.approx(row["e_score_raw"], abs=step / 2)
        np.testing.assert_allclose((levels / 255).mean(axis=(1, 2)), row["e_per_second"], atol=0.5 / 255)
        assert saved["product_quads"] == row["product_quads"]


def test_same_command_again_computes_nothing_and_repaired_files_are_retried(
    catalogue: Catalogue, scored: subprocess.CompletedProcess
):
    output = catalogue.folder / "mixed"
    before, rows = content_of(output), rows_of(output)
    again = catalogue.score(*first_command(catalogue))
    assert again.returncode == 3, again.stdout + again.stderr
    assert "0 to score" in again.stdout
    assert content_of(output) == before

    some = catalogue.score(*first_command(catalogue), "--retry-failed", "--limit", "7", "--max-failed-fraction", "1")
    assert some.returncode == 0, some.stdout + some.stderr
    assert "1 to score" in some.stdout  # the seventh video, of the nine that failed
    assert rows_of(output).keys() == rows.keys()
    assert_summary_adds_up(output)

    write_clip(catalogue.folder / "empty.mp4", 2)
    write_strange_card(catalogue.folder / "nowhere.png")
    retried = catalogue.score(*first_command(catalogue), "--retry-failed", "--max-failed-fraction", "1")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    assert f"{len(BROKEN)} to score" in retried.stdout
    after = rows_of(output)
    assert after.keys() == rows.keys()
    assert (after["empty"]["status"], after["empty"]["seconds"]) == ("no_product", 2)
    assert after["image_missing"]["status"] == "not_localised"
    for name, row in rows.items():
        if row["status"] != "failed":
            assert after[name] == row
        elif name not in ("empty", "image_missing"):
            assert after[name]["error_code"] == row["error_code"]
    assert_summary_adds_up(output)


@pytest.mark.slow
def test_a_later_run_scores_only_what_has_changed_since(catalogue: Catalogue, scored: subprocess.CompletedProcess):
    before = rows_of(catalogue.folder / "mixed")
    write_clip(catalogue.folder / "text.mp4", 2)
    again = first_command(catalogue)
    again[again.index(f"{catalogue.folder}/mixed")] = f"{catalogue.folder}/later"
    later = catalogue.score(*again, "--since", f"{catalogue.folder}/mixed", "--max-failed-fraction", "1")
    assert later.returncode == 0, later.stdout + later.stderr
    assert "2 to score" in later.stdout  # the changed one, and the one that was not there to be compared
    assert f"{len(before) - 2} videos are as they were" in later.stdout
    after = rows_of(catalogue.folder / "later")
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"text", "missing"}
    assert (after["text"]["status"], after["text"]["seconds"]) == ("no_product", 2)
    assert_summary_adds_up(catalogue.folder / "later")
    maps = [row for part in (catalogue.folder / "later" / "maps").iterdir() for row in pq.read_table(part).to_pylist()]
    assert sorted(m["video_id"] for m in maps) == sorted(n for n, row in after.items() if row["status"] != "failed")

    another = catalogue.score(*again, "--since", f"{catalogue.folder}/later")
    assert another.returncode == 2
    assert "the same folder" in another.stderr


@pytest.fixture
def small_disk(catalogue: Catalogue) -> Iterator[Path]:
    """A folder on a file system of its own, of 64 kB."""
    folder = catalogue.folder / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_job_with_a_word_and_the_same_command_goes_on(catalogue: Catalogue, small_disk: Path):
    command = [*catalogue.flags("full", "many"), "--max-seconds", "1", "--limit", "16"]
    broke = catalogue.score(*command)
    assert broke.returncode == 1, broke.stdout + broke.stderr
    assert "No space left on device" in broke.stderr
    assert "the same command goes on" in broke.stderr
    assert "Traceback" not in broke.stdout + broke.stderr
    written = rows_of(small_disk)
    assert 0 < len(written) < 16
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    done = catalogue.score(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(small_disk)
    assert len(rows) == 16
    assert all(rows[name] == row for name, row in written.items())


def until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def stop_midway(catalogue: Catalogue, output: Path, flags: list[str], signal_number: int) -> tuple[int, float, str]:
    """Start the job on many videos and, at its next part file, stop it: exit code, seconds, what it said.

    A terminal's Ctrl-C reaches the whole process group, a kill the driver alone.
    """
    parts_before = len(list(output.glob("scores/*.parquet")))
    command = [sys.executable, "-m", "jobs.score", *flags]
    with (catalogue.folder / "log.txt").open("w+") as log:
        job = subprocess.Popen(
            command, cwd=ROOT, env=catalogue.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            assert until(lambda: len(list(output.glob("scores/*.parquet"))) > parts_before, 120), log.name
            with pytest.raises(Refused, match=f"process {job.pid} on "), FolderLock(str(output)):
                pass
            started = time.monotonic()
            (os.killpg if signal_number == signal.SIGINT else os.kill)(job.pid, signal_number)
            job.wait(90)
            spent = time.monotonic() - started
        finally:
            job.kill()
        assert until(lambda: not catalogue.processes(), 60), catalogue.stacks()
        log.seek(0)
        return job.returncode, spent, log.read()


def test_limited_interrupted_and_killed_runs_are_gone_on_with_until_every_id_is_there_once(catalogue: Catalogue):
    output, all_ids = catalogue.folder / "many", input_ids(catalogue, "many")
    command = [*catalogue.flags("many", "many"), "--max-seconds", "1"]
    limited = catalogue.score(*command, "--limit", "4")
    assert limited.returncode == 0, limited.stdout + limited.stderr
    first = rows_of(output)
    assert len(first) == 4

    code, spent, said = stop_midway(catalogue, output, command, signal.SIGINT)
    assert code == 130, said
    assert spent < 60
    assert "goes on where this one ended" in said
    assert "Traceback" not in said
    interrupted = rows_of(output)
    assert 4 < len(interrupted) < len(all_ids)
    assert not (output / "run.json").exists()
    left_in_hand = set((output / "attempts").glob("*"))

    code, spent, said = stop_midway(catalogue, output, command, signal.SIGTERM)
    assert code == 130, said
    assert spent < 60
    assert "goes on where this one ended" in said
    assert "asked to stop: finishing the videos in hand" in said
    assert set((output / "attempts").glob("*")) <= left_in_hand, "a stopped job leaves nothing half done"
    terminated = rows_of(output)
    assert len(interrupted) < len(terminated) < len(all_ids)

    code, _, said = stop_midway(catalogue, output, command, signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    killed = rows_of(output)
    assert len(terminated) < len(killed) < len(all_ids)
    assert not (output / "run.json").exists()

    finished = catalogue.score(*command)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"{len(killed)} finished before" in finished.stdout
    rows = rows_of(output)
    assert rows.keys() == all_ids
    for earlier in (first, interrupted, terminated, killed):
        assert all(rows[name] == row for name, row in earlier.items())
    assert_summary_adds_up(output)
    for name, row in rows.items():  # copies of one video have one score
        assert row["pe_score"] == pytest.approx(rows[f"{name.split()[0]} copy 0"]["pe_score"], rel=1e-4)


def run_in_process(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the job; for runs that end before work starts."""
    monkeypatch.setattr(sys, "argv", ["jobs.score", *flags])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", catalogue.env["MLFLOW_TRACKING_URI"])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_job(ScoreConfig, main, "score")
    finally:
        signal.signal(signal.SIGTERM, handler)
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def test_dry_run_prints_the_plan_and_writes_nothing(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    flags = [*catalogue.flags("dry"), "--dry-run"]
    code, out, err = run_in_process(catalogue, monkeypatch, capsys, *flags)
    assert code == 0, err
    assert f"{len(input_ids(catalogue))} videos" in out
    assert "PREPARE" in out
    assert not (catalogue.folder / "dry").exists()


REFUSED_AT_THE_DOOR = {
    "another config in the same folder": (
        ["--output", "{folder}/mixed", "--max-seconds", "7"],
        "max_seconds was 3.0, is 7.0",
    ),
    "unknown registered model": (["--model", "models:/pe-engagement@champion"], "jobs.train"),
    "missing checkpoint": (["--model", "{folder}/absent.pt"], "no such checkpoint file"),
    "not a checkpoint": (["--model", "{folder}/corrupt.png"], "the model's weights"),
    "no write permission": (["--output", "{folder}/model.pt/out"], "cannot be written"),
    "missing table": (["--videos", "{folder}/absent.parquet"], "absent.parquet"),
    "unknown product": (["--products", "{folder}/few.parquet"], "product"),
    "unknown method": (["--method", "gradcam++"], "hires_cam, gradient"),
    "unknown key in the file": (["--config", "{folder}/unknown.yaml"], "max-second"),
    "missing config file": (["--config", "{folder}/absent.yaml"], "absent.yaml"),
    "nonsense value": (["--sample-fps", "0"], "--sample-fps is 0"),
    "no frame at all": (["--max-seconds", "0.001"], "make 0.001 frames a video"),
    "no end": (["--video-timeout", "inf"], "--video-timeout is inf"),
    "no video": (["--limit", "0"], "--limit is 0"),
    "products not given": (["--products", "None"], "--products is not given"),
    "maps for some only": (["--output", "{folder}/mixed", *FIRST_FLAGS, "--no-save-maps"], "begun with --save-maps"),
    "value of another type": (["--max-seconds", "many"], "many"),
}


@pytest.mark.parametrize("reason", REFUSED_AT_THE_DOOR)
def test_bad_settings_are_refused_before_anything_is_written(
    catalogue: Catalogue,
    scored: subprocess.CompletedProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: str,
):
    (catalogue.folder / "unknown.yaml").write_text("max-second: 3\n")
    few = pq.read_table(catalogue.folder / "products.parquet").slice(0, 1)
    pq.write_table(few, catalogue.folder / "few.parquet")
    flags, expected = REFUSED_AT_THE_DOOR[reason]
    before = content_of(catalogue.folder / "mixed")
    given = [*catalogue.flags("refused"), *(flag.format(folder=catalogue.folder) for flag in flags)]
    code, out, err = run_in_process(catalogue, monkeypatch, capsys, *given)
    assert code == 2, out + err
    assert expected in err + out
    assert "Traceback" not in err + out
    assert not (catalogue.folder / "refused").exists()
    assert content_of(catalogue.folder / "mixed") == before
