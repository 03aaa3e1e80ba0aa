"""The explorer: pages on demand on this machine, for ids that were scored and nothing else."""

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from catalog.errors import Refused
from catalog.world import WorldPaths
from jobs.serve import ServeConfig, main
from scoring.settings import VideoLimits
from tests.test_overlay import write_scored
from tests.test_report import HOSTILE, ok, write_scores

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60


def serving(scores: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "jobs.serve", "--scores", str(scores), "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if found := re.match(r"(http://\S+/)", line):
            return server, found[1]
    server.kill()
    raise AssertionError(said)


def end(server: subprocess.Popen[str]) -> int:
    server.send_signal(signal.SIGINT)
    try:
        return server.wait(TIMEOUT_S)
    finally:
        server.kill()
        assert server.stdout is not None
        server.stdout.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, small_world: WorldPaths) -> Iterator[str]:
    scores = write_scored(tmp_path_factory.mktemp("serve"), small_world, products=str(small_world.products))
    server, address = serving(scores)
    yield address
    end(server)


@pytest.fixture(scope="module")
def odd_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("odd")
    server, address = serving(
        write_scores(folder / "out", [ok(text) for text in [*HOSTILE, "../a", "a/b?c&d=e#f", "."]])
    )
    yield address
    end(server)


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_catalogue_links_to_every_videos_page_which_is_made_on_demand(chromium: Browser, address: str):
    context = chromium.new_context()
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#videos tbody a").count() == 5
    page.locator("#videos").get_by_text("v000000").click()
    page.wait_for_selector(".stage video")
    page.wait_for_selector("body[data-ready]")
    page.get_by_text("All videos of the catalogue").click()
    page.wait_for_selector("#videos")
    assert page.url == address
    assert [text for text in complaints if "favicon" not in text] == []
    context.close()


@pytest.mark.parametrize("text", [*HOSTILE, "../a", "a/b?c&d=e#f", "."])
def test_any_id_has_its_page(odd_address: str, text: str):
    status, html = get(f"{odd_address}video?id={quote(text, safe='')}")
    assert status == 200
    assert "How it compares" in html


@pytest.mark.parametrize(
    "asked", ["video?id=../../../../etc/passwd", "video?id=%2Fetc%2Fpasswd", "video", "video?id=x"]
)
def test_an_id_that_was_not_scored_is_not_found(address: str, asked: str):
    status, said = get(address + asked)
    assert status == 404
    assert "no scores of a video of that id" in said


@pytest.mark.parametrize("path", ["scores/0.parquet", "run.json", "../run.json", "%2e%2e/run.json"])
def test_no_file_is_served(address: str, path: str):
    assert get(address + path)[0] == 404


def test_nothing_can_be_sent(address: str):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(address, data=b"x"), timeout=TIMEOUT_S)
    assert error.value.code == 405


def test_another_sites_name_is_not_answered(address: str):
    assert get(address, Host="evil.example")[0] == 400
    assert get(address, Host="localhost")[0] == 200


def test_it_listens_on_this_machine_alone(address: str):
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass  # a server on all addresses would answer


def test_a_port_in_use_and_limits_without_sense_are_refused(tmp_path: Path):
    scores = write_scores(tmp_path / "out", [ok("a")])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Refused, match=r"--port \d+ cannot be used"):
            main(ServeConfig(str(scores), port=taken.getsockname()[1]))
    with pytest.raises(Refused, match="--video-timeout is 0"):
        main(ServeConfig(str(scores), limits=VideoLimits(video_timeout=0)))
    with pytest.raises(Refused, match="--port 70000 cannot be used"):
        main(ServeConfig(str(scores), port=70_000))


def test_titles_and_categories_come_from_the_tables_that_are_given(tmp_path: Path):
    scores = write_scores(tmp_path / "out", [ok("a"), ok("b")])
    pq.write_table(pa.table({"video_id": ["a"], "title": ["Morning <3"]}), tmp_path / "v.parquet")
    pq.write_table(pa.table({"product_id": ["p1"], "category": ["care"]}), tmp_path / "p.parquet")
    from jobs.steps.serve import _maker

    given = ServeConfig(str(scores), videos=str(tmp_path / "v.parquet"), products=str(tmp_path / "p.parquet"))
    with _maker(given) as maker:
        assert "Morning &lt;3" in maker.catalogue() and "care" in maker.page_of("a")


def test_ctrl_c_ends_it_without_a_trace(tmp_path: Path):
    server, address = serving(write_scores(tmp_path / "out", [ok("a")]))
    try:
        assert get(address)[0] == 200
    finally:
        code = end(server)
    assert code == 130
