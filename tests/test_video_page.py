"""The page of one video, opened in the browser: what it shows, that it seeks, and its states."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from catalog.errors import ErrorCode, Refused
from catalog.schemas import SCORES
from catalog.world import WorldPaths
from jobs.report import ReportConfig, main
from scoring.settings import VideoLimits
from tests.browser import NARROW, WIDE, Opened, opened
from tests.test_overlay import QUAD, saved, spot, write_scored
from tests.test_report import HOSTILE, failed, no_product, not_localised, ok
from views.video_page import video_page
from views.viewer import Film

E_, P_, PE_ = [0.1, 0.4, 0.1, 0.1], [0.0, 0.0, 0.25, 0.25], [0.0, 0.0, 0.05, 0.01]
SHOWN = {
    "e_per_second": E_, "p_per_second": P_, "pe_per_second": PE_, "seconds": 4, "width": 360, "height": 640,
    "product_quads": [None, None, QUAD.ravel().tolist(), QUAD.ravel().tolist()], "product_inliers": [0, 0, 40, 10],
}  # fmt: skip


@pytest.fixture(scope="session")
def film(small_world: WorldPaths) -> Film:
    """A made-up video of at least four seconds."""
    truth = {row["video_id"]: len(row["product_visible"]) for row in pq.read_table(small_world.truth).to_pylist()}
    uris = {row["video_id"]: row["video_uri"] for row in pq.read_table(small_world.videos).to_pylist()}
    longest = max(truth, key=lambda video_id: truth[video_id])
    return Film((small_world.folder / uris[longest]).read_bytes())


def page(row: dict[str, Any], film: Film, others: list[dict[str, Any]] = [], **more: Any) -> str:  # noqa: B006
    scores = pa.Table.from_pylist([row, *others], schema=SCORES)
    return video_page(scores, row["video_id"], film, **more)


def full_page(film: Film) -> str:
    levels = saved(spot([(3, 3), (9, 20), (14, 14), (14, 14)]))
    others = [ok(f"v{n}", n / 100, **{**SHOWN, "product_id": f"p{n % 2}"}) for n in range(1, 10)]
    row = ok("v", 0.085, **SHOWN)
    alike = {"mean": 0.1, "low": None, "high": None}
    evidence = {
        "videos": 8, "randomised": {"stem": alike}, "randomised_inside": {"stem": alike},
        "gains": [{"what": "deletion", "infill": "blur", "over": "random", "mean": 0.5, "low": 0.2, "high": 0.7}],
    }  # fmt: skip
    return page(
        row, film, others, saved=levels, summary={"faithfulness": evidence}, config={"min_inliers": 7},
        about={"title": "Morning routine", "creator_id": "c1", "product_title": "Soap"},
        categories={"p1": "care", "p0": "food"},
    )  # fmt: skip


@pytest.fixture
def shown(chromium: Browser, film: Film, tmp_path: Path):
    with opened(chromium, full_page(film), tmp_path) as it:
        yield it


def time_of(it: Opened) -> float:
    return it.page.evaluate("document.querySelector('video').currentTime")


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_opens_without_complaints_requests_or_barriers(
    chromium: Browser, film: Film, tmp_path: Path, width: int
):
    with opened(chromium, full_page(film), tmp_path, width) as it:
        assert it.complaints == []
        assert it.accessibility_problems() == []
        assert not it.is_too_wide()
        assert it.page.locator(".chart svg g[id*=axes_]").count() >= 3
        assert it.page.evaluate("document.querySelector('video').videoWidth") == 360


def test_a_click_on_the_chart_seeks_the_video_and_moves_the_playhead(shown: Opened):
    box = shown.page.locator(".chart").bounding_box()
    assert box is not None
    at = box["x"] + box["width"] * (0.2 + 0.78 * 0.75)  # three quarters of the axes, which are 20% to 98% of the chart
    shown.page.mouse.click(at, box["y"] + 30)
    shown.wait_for("!document.querySelector('video').seeking")
    assert time_of(shown) == pytest.approx(3.0, abs=0.05)
    head = shown.page.locator(".playhead")
    head_box = head.bounding_box()
    assert head_box is not None and head_box["x"] + head_box["width"] / 2 == pytest.approx(at, abs=2)
    assert head.get_attribute("aria-valuetext") == "3.0 s: E 0.1000, P 25.0%, PE 0.0100"


def test_the_playhead_runs_while_the_video_plays(shown: Opened):
    shown.page.evaluate("{ const film = document.querySelector('video'); film.muted = true; film.play(); }")
    shown.wait_for("Number(document.querySelector('.playhead').ariaValueNow) > 0.4")


def test_the_chart_is_reached_and_moved_by_keys_alone(shown: Opened):
    for _ in range(30):
        shown.page.keyboard.press("Tab")
        if shown.page.evaluate("document.activeElement.className") == "playhead":
            break
    for key, seconds in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 4), ("Home", 0)):
        shown.page.keyboard.press(key)
        shown.wait_for("!document.querySelector('video').seeking")
        assert time_of(shown) == pytest.approx(seconds, abs=0.3)


def test_heat_is_drawn_from_the_map_at_the_videos_time_and_lies_on_the_video(shown: Opened):
    hottest = """() => {
      const canvas = document.querySelector("canvas"), data = canvas.getContext("2d").getImageData(0, 0, 28, 28).data;
      const cover = [...data].filter((_, i) => i % 4 === 3);
      const most = cover.indexOf(Math.max(...cover));
      return [Math.floor(most / 28), most % 28];
    }"""
    for second, cell in ((0, [3, 3]), (1, [9, 20]), (2, [14, 14])):
        seek(shown, second)
        assert shown.page.evaluate(hottest) == cell
    boxes = [shown.page.locator(f".stage {tag}").bounding_box() for tag in ("video", "canvas", "svg")]
    assert boxes[0] == boxes[1] == boxes[2]
    picture = boxes[0]
    assert picture is not None and picture["width"] / picture["height"] == pytest.approx(360 / 640, rel=0.01)


def test_heat_between_seconds_is_the_weighted_mean_of_theirs(shown: Opened):
    seek(shown, 0.5)
    cover = "document.querySelector('canvas').getContext('2d').getImageData({}, {}, 1, 1).data[3]"
    first, second, other = (shown.page.evaluate(cover.format(*cell)) for cell in ((3, 3), (20, 9), (14, 14)))
    assert first == second > other == 0


def test_heat_and_outline_can_be_switched_off(shown: Opened):
    seek(shown, 2.2)
    heat, outline = shown.page.locator("canvas"), shown.page.locator(".stage svg")
    assert heat.is_visible() and outline.is_visible()
    assert outline_of(shown) == "M0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75Z"
    shown.page.get_by_label("attention (E)").uncheck()
    shown.page.get_by_label("product (P)").uncheck()
    assert not heat.is_visible() and not outline.is_visible()
    assert shown.page.evaluate("getComputedStyle(document.querySelector('video')).filter") == "none"


def test_the_outline_is_hidden_where_the_product_is_not(shown: Opened):
    seek(shown, 0.2)
    assert not shown.page.locator(".stage svg").is_visible()


def outline_of(it: Opened) -> str | None:
    return it.page.locator(".stage path").first.get_attribute("d")


def test_every_copy_of_the_product_has_its_outline(chromium: Browser, film: Film, tmp_path: Path):
    left, right = QUAD / 4, QUAD / 4 + 0.5
    pairs = [np.stack(pair).ravel().tolist() for pair in ((left, right), (right, left))]
    row = ok("v", 0.085, **{**SHOWN, "product_quads": [None, QUAD.ravel().tolist(), *pairs]})
    with opened(chromium, page(row, film, saved=saved(spot([(3, 3)] * 4))), tmp_path) as it:
        for second in (2, 2.5, 3):  # whichever of the two was found first
            seek(it, second)
            drawn = ["M" + " ".join(f"{v:.10g}" for v in quad.ravel()) + "Z" for quad in (left, right)]
            assert outline_of(it) == "".join(drawn)
        seek(it, 1.2)
        assert outline_of(it) == "M0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75Z"


def seek(it: Opened, seconds: float) -> None:
    it.page.evaluate(f"document.querySelector('video').currentTime = {seconds}")
    it.wait_for("!document.querySelector('video').seeking")
    it.wait_for(f"Math.abs(document.querySelector('.playhead').ariaValueNow - {seconds}) < 0.11")


def test_percentiles_are_those_of_the_catalogue_and_of_the_category(shown: Opened):
    first = shown.page.locator("#scores tbody tr").first.inner_text().split("\t")
    # above v1 ... v8 of ten and itself; in category care v1, v3, v5, v7 of v9 and itself below
    assert first == ["PE: attention that lands on the product", "0.0850", "85 of 10", "75 of 6"]


def test_what_the_numbers_say_is_told_and_its_buttons_seek(shown: Opened):
    assert shown.page.locator("#missed").inner_text() == (
        "The product shows at 2–4 s; attention peaks at 1–2 s, without it."
    )
    shown.page.get_by_role("button", name="1–2 s").click()
    shown.wait_for("!document.querySelector('video').seeking")
    assert time_of(shown) == pytest.approx(1.0, abs=0.01)
    assert "1.14 times its mean attention" in shown.page.locator("#hook").inner_text()


def test_how_far_to_trust_it_is_told(shown: Opened):
    said = shown.page.locator("#localisation").inner_text()
    assert "found in 2 of 4 sampled seconds, in half of them by at least 25 matching details" in said
    assert said.endswith("few details carry it: sample 3.")
    assert shown.page.locator("#verdicts tbody tr").count() == 2


@pytest.mark.parametrize(
    "row, film, says",
    [
        (
            not_localised("v") | {"product_inliers": [0, 0]},
            Film(problem="v.mp4: no such file"),
            "Check that product_id",
        ),
        (no_product("v"), Film(problem="v.mp4: no such file"), "Fill product_id"),
    ],
)
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_states_without_a_product_help_and_show_attention(
    chromium: Browser, tmp_path: Path, row: dict[str, Any], film: Film, says: str, width: int
):
    with opened(chromium, page(row, film, saved=saved(spot([(3, 3), (9, 9)]))), tmp_path, width) as it:
        assert it.complaints == [] and it.accessibility_problems() == []
        assert says in it.page.locator("#state").inner_text()
        assert "no such file" in it.page.locator(".no-film").inner_text()
        assert it.page.locator(".stage svg").count() == 0
        it.page.locator(".playhead").press("ArrowRight")
        assert it.page.locator(".playhead").get_attribute("aria-valuenow") == "1.0"
        assert it.page.locator("canvas").is_visible()
        assert it.page.locator("#suggestions").count() == 0


def test_without_a_saved_map_the_page_says_how_to_get_one(chromium: Browser, film: Film, tmp_path: Path):
    with opened(chromium, page(ok("v", **SHOWN), film), tmp_path) as it:
        assert it.complaints == []
        assert "--save-maps" in it.page.locator(".no-map").inner_text()
        assert it.page.locator("canvas").count() == 0
        seek(it, 2.2)
        assert it.page.locator(".stage svg").is_visible()
        assert it.page.locator("#no-category").count() == it.page.locator("#untested").count() == 1


@pytest.mark.parametrize("code", [ErrorCode.TRUNCATED, ErrorCode.NOT_FOUND])
def test_a_failed_video_says_why_and_what_to_do(chromium: Browser, tmp_path: Path, code: ErrorCode):
    html = page(failed("v", code), Film())
    assert f"<code>{code}</code> in decode" in html and "cut off" in html
    assert "--retry-failed" in html
    assert "<script" not in html and "<video" not in html
    with opened(chromium, html, tmp_path, NARROW) as it:
        assert it.complaints == [] and it.accessibility_problems() == [] and not it.is_too_wide()


def test_every_text_is_shown_as_text_and_runs_nothing(chromium: Browser, film: Film, tmp_path: Path):
    for text in HOSTILE:
        row = ok(text, product_id=text, model_uri=text, **SHOWN)
        about = {"title": text, "creator_id": text, "product_title": text}
        html = page(row, film, about=about, categories={text: text})
        with opened(chromium, html, tmp_path, NARROW) as it:
            assert it.complaints == [] and not it.is_too_wide()
            assert " ".join(it.page.locator("h1").inner_text().split()) == " ".join(text.split())


def test_a_page_runs_its_own_script_only(chromium: Browser, film: Film, tmp_path: Path):
    html = page(ok("v", **SHOWN), film).replace("</main>", "<script>document.title = 'taken over'</script></main>")
    with opened(chromium, html, tmp_path) as it:
        assert it.page.title() == "v – PE-score"


def test_job_writes_the_page_of_one_video_with_its_film_and_map(
    chromium: Browser, tmp_path: Path, small_world: WorldPaths
):
    scores = write_scored(tmp_path, small_world, products=str(small_world.products))
    assert main(ReportConfig(str(scores), str(tmp_path / "v.html"), video="v000000")) == 0
    html = (tmp_path / "v.html").read_text()
    source = small_world.folder / pq.read_table(small_world.videos).to_pylist()[0]["video_uri"]
    assert base64.b64encode(source.read_bytes()).decode() in html
    with opened(chromium, tmp_path / "v.html", tmp_path) as it:
        assert it.complaints == []
        assert it.page.locator("canvas").get_attribute("width") == "16"


@pytest.mark.parametrize("video, says", [("gone", "no such file"), ("broken", "truncated")])
def test_job_writes_a_page_for_a_video_that_is_gone_or_failed(
    tmp_path: Path, small_world: WorldPaths, video: str, says: str
):
    scores = write_scored(tmp_path, small_world)
    assert main(ReportConfig(str(scores), str(tmp_path / "v.html"), video=video)) == 0
    assert says in (tmp_path / "v.html").read_text()


def test_job_goes_without_a_table_that_is_gone_and_says_so(tmp_path: Path, small_world: WorldPaths, capsys):
    scores = write_scored(tmp_path, small_world)
    (tmp_path / "videos.parquet").unlink()
    assert main(ReportConfig(str(scores), str(tmp_path / "v.html"), video="v000000")) == 0
    assert "the videos table cannot be read" in capsys.readouterr().out
    assert "give the one that was scored with --videos" in (tmp_path / "v.html").read_text()


def test_job_takes_categories_from_the_products_table(tmp_path: Path, small_world: WorldPaths):
    scores = write_scored(tmp_path, small_world)
    pq.write_table(pa.table({"product_id": ["p1"], "category": ["<care>"], "title": ["Soap"]}), tmp_path / "p.parquet")
    config = ReportConfig(str(scores), str(tmp_path / "v.html"), products=str(tmp_path / "p.parquet"), video="v000000")
    assert main(config) == 0
    html = (tmp_path / "v.html").read_text()
    assert "Percentile in <bdi>&lt;care&gt;</bdi>" in html and "Product <bdi>Soap</bdi>" in html


def test_a_film_that_takes_too_long_is_left_out(tmp_path: Path, small_world: WorldPaths):
    scores = write_scored(tmp_path, small_world)
    impatient = VideoLimits(video_timeout=1e-4)
    assert main(ReportConfig(str(scores), str(tmp_path / "v.html"), video="v000000", limits=impatient)) == 0
    assert "no answer after 0.0001 s" in (tmp_path / "v.html").read_text()
    with pytest.raises(Refused, match="--video-memory-mb is 0"):
        main(ReportConfig(str(scores), str(tmp_path / "v.html"), limits=VideoLimits(video_memory_mb=0)))


def test_job_refuses_a_video_that_was_not_scored(tmp_path: Path, small_world: WorldPaths):
    scores = write_scored(tmp_path, small_world)
    with pytest.raises(Refused, match=r"nobody: .* has no scores of a video of that id"):
        main(ReportConfig(str(scores), str(tmp_path / "v.html"), video="nobody"))


def test_a_film_that_browsers_do_not_play_is_embedded_as_h264(tmp_path: Path, chromium: Browser):
    from tests.test_overlay import write_source
    from views.preview import Previewer

    source = write_source(tmp_path / "in.mkv", clicks=True)
    html = page(ok("v", **SHOWN), Film(Previewer(60.0, 10**8)(str(source))))
    with opened(chromium, html, tmp_path) as it:
        assert it.complaints == []
        assert it.page.evaluate("document.querySelector('video').videoWidth") == 96
        assert not it.page.locator(".unplayable").is_visible()


def test_the_overlay_video_plays_in_the_browser(chromium: Browser, small_world: WorldPaths, tmp_path: Path):
    from catalog.video_container import Limits
    from tests.test_overlay import overlay
    from views.overlay import bar_height
    from views.rewrite import rewrite

    source = small_world.folder / pq.read_table(small_world.videos).to_pylist()[0]["video_uri"]
    rewrite(source, tmp_path / "out.mp4", Limits(), overlay(saved(spot([(3, 3)] * 5))))
    html = "<body data-ready><video src=out.mp4 preload=auto></video></body>"
    with opened(chromium, html, tmp_path) as it:
        it.wait_for("document.querySelector('video').readyState >= 2")
        size = it.page.evaluate(
            "(({videoWidth, videoHeight}) => [videoWidth, videoHeight])(document.querySelector('video'))"
        )
        assert size == [360, 640 + bar_height(360, 640)]


def test_data_of_the_page_is_what_the_scores_say(film: Film):
    html = page(ok("v", **SHOWN), film)
    data = json.loads(html.split('class="data">')[1].split("</script>")[0])
    assert data["e"] == E_ and data["p"] == P_ and np.allclose(data["pe"], PE_)
    assert data["quads"][0] == [] and data["end"] == 4
