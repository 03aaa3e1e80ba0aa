"""Overlay videos: what is drawn where and when, that sound and times stay, and what the job does with odd input."""

import json
import struct
import subprocess
import sys
from base64 import b64encode
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from catalog.errors import ErrorCode, Refused, VideoError
from catalog.sampling import SamplingConfig
from catalog.schemas import MAPS
from catalog.video_container import Limits
from catalog.world import WorldPaths
from jobs.overlay import OverlayConfig, main
from scoring.output import OutputFolder
from scoring.settings import VideoLimits
from tests.browser import opened
from tests.test_report import failed, no_product, ok, write_scores
from views.maps import SavedMap, in_step, quads_of
from views.names import file_stem
from views.overlay import Overlay, bar_height
from views.overlay_graph import TO_DRAW, DrawActor
from views.rewrite import Planes, Written, rewrite

ROOT = Path(__file__).parents[1]
GRID = 28
QUAD = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])


def spot(cells: list[tuple[int, int]], grid: int = GRID) -> np.ndarray:
    """One sample each: E is in one cell (row, column) alone."""
    levels = np.zeros((len(cells), grid, grid), np.uint8)
    for sample, (row, column) in zip(levels, cells, strict=True):
        sample[row, column] = 255
    return levels


def saved(levels: np.ndarray, quads: Sequence[np.ndarray | None] | None = None, rate: float = 1.0) -> SavedMap:
    """quads: (4, 2), or (N, 4, 2) of several copies."""
    flat = [None if quad is None else quad.ravel().tolist() for quad in quads or [None] * len(levels)]
    return SavedMap(levels, in_step(quads_of(flat, len(levels))), rate)


def overlay(of: SavedMap, values: list[float] | None = None) -> Overlay:
    return Overlay(of, values or [0.5] * len(of.levels), "PE", 0.8)


def grey(width: int = 280, height: int = 560) -> Planes:
    planes = Planes.empty(width, height)
    planes.luma[:], planes.chroma[:] = 100, 60
    return planes


def write_source(
    path: Path, size: tuple[int, int] = (96, 160), times: list[int] | None = None, clicks: bool = False, **more: Any
) -> Path:
    """Grey video whose frames are shown at ``times`` (1/100 s), white from 1 s to 1.2 s; with ``clicks`` a sound that
    is loud just then."""
    times = times if times is not None else list(range(0, 300, 4))
    with av.open(str(path), "w", **more) as container:
        picture: Any = container.add_stream("libx264", rate=25, options={"bf": "2", "preset": "ultrafast"})
        picture.width, picture.height, picture.pix_fmt = *size, "yuv420p"
        picture.codec_context.time_base = Fraction(1, 100)
        track: Any = container.add_stream("aac", rate=48_000, layout="mono") if clicks else None
        for time in times:
            shade = np.full((*size[::-1], 3), 255 if 100 <= time < 120 else 60, np.uint8)
            frame = av.VideoFrame.from_ndarray(shade, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if clicks:
            seconds = np.arange(3 * 48_000) / 48_000
            wave = np.sin(2 * np.pi * 880 * seconds) * ((seconds >= 1) & (seconds < 1.2))
            sound = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux(track.encode(sound))
            container.mux(track.encode(None))
    return path


def pictures(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [float(frame.time) for frame in frames]


def loud(path: Path) -> tuple[float, float]:
    """When the sound begins and ends, seconds, as a player plays it."""
    with av.open(str(path)) as container:
        parts = []
        for frame in container.decode(container.streams.audio[0]):
            samples = np.abs(frame.to_ndarray()).reshape(-1, len(frame.layout.channels)).max(axis=1)
            if frame.format.is_planar:
                samples = np.abs(frame.to_ndarray()).max(axis=0)
            parts.append((float(frame.time) + np.arange(len(samples)) / frame.sample_rate, samples))
    times, samples = (np.concatenate(part) for part in zip(*parts, strict=True))
    heard = times[samples > 0.3]
    return float(heard[0]), float(heard[-1])


def test_e_between_two_seconds_is_their_weighted_mean():
    levels = np.stack([np.full((4, 4), 40, np.uint8), np.full((4, 4), 200, np.uint8)])
    at = saved(levels).levels_at
    assert [int(at(time)[0, 0]) for time in (0, 0.25, 0.5, 1.0, 1.9)] == [40, 80, 120, 200, 200]
    assert at(2.0) is None


@pytest.mark.parametrize("rate, time", [(1.0, 1.0), (4.0, 0.25)])
def test_samples_lie_as_far_apart_as_they_were_taken(rate: float, time: float):
    levels = np.stack([np.zeros((4, 4), np.uint8), np.full((4, 4), 200, np.uint8)])
    assert saved(levels, rate=rate).levels_at(time)[0, 0] == 200
    assert saved(levels, rate=rate).levels_at(time / 2)[0, 0] == 100


def test_the_outline_moves_between_two_sightings_and_ends_half_way_to_none():
    moved = saved(spot([(0, 0)] * 3), [QUAD, QUAD + 0.2, None])
    assert np.allclose(moved.quads_at(0.5), [QUAD + 0.1])
    assert np.allclose(moved.quads_at(1.4), [QUAD + 0.2])
    assert len(moved.quads_at(1.6)) == 0


def test_copies_move_each_on_its_own_line_whichever_was_found_first():
    left, right = QUAD / 2, QUAD / 2 + (0.5, 0)
    moved = saved(spot([(0, 0)] * 3), [np.stack([left, right]), np.stack([right + 0.1, left]), right + 0.1])
    assert np.allclose(moved.quads_at(0.5), [left, right + 0.05])
    assert np.allclose(moved.quads_at(1.4), [left, right + 0.1])
    assert np.allclose(moved.quads_at(1.6), [right + 0.1])


@pytest.mark.parametrize("size", [(280, 560), (560, 280), (202, 402)])
@pytest.mark.parametrize("cell", [(3, 20), (14, 14), (26, 1)])
def test_heat_lies_where_the_cell_of_the_map_is(size: tuple[int, int], cell: tuple[int, int]):
    width, height = size
    shown = overlay(saved(spot([cell])))(grey(width, height), 0.0, False)
    brightness = shown.luma[:height].astype(float) - 100
    rows, columns = np.indices(brightness.shape)
    weight = np.abs(brightness)
    centre = (
        (weight * rows).sum() / weight.sum() / height * GRID,
        (weight * columns).sum() / weight.sum() / width * GRID,
    )
    assert np.abs(np.array(centre) - (np.array(cell) + 0.5)).max() < 0.5  # of a cell


@pytest.mark.parametrize("size, turn", [((112, 224), 0), ((224, 112), 0), ((224, 112), 90)])
def test_heat_lies_there_in_the_file_that_is_written_too(tmp_path: Path, size: tuple[int, int], turn: int):
    source = write_source(tmp_path / "in.mp4", size)
    if turn:
        source = turned(source, tmp_path / "turned.mp4", turn)
    cells = [(5, 22), (20, 9), (14, 14)]
    rewrite(source, tmp_path / "out.mp4", Limits(), overlay(saved(spot(cells))))
    shown, at = pictures(tmp_path / "out.mp4")
    for second, cell in enumerate(cells):
        picture = shown[at.index(float(second))]
        width = picture.shape[1]
        height = size[0] if turn else size[1]
        colour = np.ptp(picture[:height].astype(float), axis=2)
        colour[colour < 30] = 0
        rows, columns = np.indices(colour.shape) + 0.5
        centre = (colour * rows).sum() / height, (colour * columns).sum() / width
        assert np.abs(np.array(centre) / colour.sum() * GRID - np.array(cell) - 0.5).max() < 1  # of the grid's cells


def turned(source: Path, target: Path, degrees: int) -> Path:
    """The same file with a display matrix that turns it."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        track = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = track
                writer.mux(packet)
    data = bytearray(target.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(upright, data.index(b"tkhd"))
    radians = np.deg2rad(degrees)
    a, b = (round(value * 65536) for value in (np.cos(radians), np.sin(radians)))
    data[at : at + len(upright)] = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def test_the_picture_is_grey_under_the_heat_and_unchanged_where_e_is_weakest():
    shown = overlay(saved(spot([(14, 14)])))(grey(), 0.0, False)
    assert (shown.luma[:200] == 100).all()
    assert (shown.chroma[:, :100] == 128).all()
    assert (shown.chroma[0, 135:145, 68:72] < 120).all()  # the strongest colour is a yellow


def test_a_level_has_the_same_colour_in_every_second_of_a_clip():
    levels = np.zeros((2, GRID, GRID), np.uint8)
    levels[:, :14], levels[0, 14:], levels[1, 20:] = 100, 250, 200
    draw = overlay(saved(levels))
    first, second = (draw(grey(), time, False) for time in (0.0, 1.0))
    assert first.luma[100, 100] == second.luma[100, 100]


def test_opacity_0_shows_the_picture_as_it_is_in_grey():
    bare = Overlay(saved(spot([(14, 14)])), [0.5], "PE", 0.0)(grey(), 0.0, False)
    assert (bare.luma[:560] == 100).all() and (bare.chroma[:, :280] == 128).all()


@pytest.mark.parametrize("is_709", [False, True])
def test_heat_has_the_colours_of_its_scale_in_both_colour_matrices(is_709: bool):
    levels = np.full((1, GRID, GRID), 255, np.uint8)
    drawn = Overlay(saved(levels), [0.5], "PE", 1.0)(grey(64, 64), 0.0, is_709)
    frame = av.VideoFrame.from_ndarray(drawn.buffer, format="yuv420p")
    space = "ITU709" if is_709 else "ITU601"
    rgb = frame.reformat(format="rgb24", src_colorspace=space, dst_color_range="JPEG").to_ndarray()[20, 20]
    expected = saved(levels).colours()[0][255]
    assert np.abs(rgb.astype(int) - expected).max() <= 4


def test_the_products_outline_is_drawn_around_it_and_nothing_inside():
    shown = overlay(saved(np.zeros((1, GRID, GRID), np.uint8), [QUAD]))(grey(), 0.0, False)
    assert shown.luma[140, 140] > 200 and shown.luma[280, 70] > 200  # top edge, left edge
    assert (shown.luma[160:400, 90:190] == 100).all()
    assert (shown.luma[:120] == 100).all()


def test_the_bar_below_runs_with_the_video_and_is_as_high_as_its_values():
    draw = overlay(saved(spot([(0, 0)] * 4)), [0.1, 0.1, 0.4, 0.4])
    height = bar_height(280, 560)
    early, late = (draw(grey(), time, False).luma[560:].astype(int) for time in (0.5, 3.5))
    assert early.shape == (height, 280)
    lit = (late > 150).sum(axis=0)
    assert lit[230] > 3 * lit[110] > 0
    assert (late > 150).sum() > 2 * (early > 150).sum()


def test_what_was_not_looked_at_is_shown_without_heat_or_outline():
    shown = overlay(saved(spot([(14, 14)] * 2), [QUAD] * 2))(grey(), 2.5, False)
    assert (shown.luma[:560] == 100).all()


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (97, 161)])
def test_every_frame_keeps_its_time_and_every_side_is_even(tmp_path: Path, size: tuple[int, int]):
    times = [0, 4, 8, 13, 20, 21, 40, 44, 100, 104, 230]
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    source = write_source(tmp_path / "in.mkv", even, times)
    written = rewrite(source, tmp_path / "out.mp4", Limits(), overlay(saved(spot([(1, 1)] * 3))))
    shown, at = pictures(tmp_path / "out.mp4")
    assert np.allclose(at, np.array(times) / 100, atol=1e-3)
    assert shown[0].shape == (even[1] + bar_height(*even), even[0], 3)
    assert written == Written(len(times), 2.3, even[0], even[1] + bar_height(*even))


def test_the_file_is_h264_yuv420p_with_its_index_in_front(tmp_path: Path):
    rewrite(write_source(tmp_path / "in.mp4"), tmp_path / "out.mp4", Limits())
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.canonical_name, context.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.video[0].average_rate == 25
    data = (tmp_path / "out.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("name, codec", [("in.mp4", "aac"), ("in.mov", "aac")])
def test_sound_stays_in_step_with_the_picture(tmp_path: Path, name: str, codec: str):
    source = write_source(tmp_path / name, clicks=True)
    rewrite(source, tmp_path / "out.mp4", Limits())
    shown, at = pictures(tmp_path / "out.mp4")
    white = [time for picture, time in zip(shown, at, strict=True) if picture.mean() > 200]
    begins, ends = loud(tmp_path / "out.mp4")
    assert abs(begins - white[0]) < 0.04 and abs(ends - (white[-1] + 0.04)) < 0.04


def test_chromium_plays_picture_and_sound_at_their_times(chromium: Browser, tmp_path: Path):
    rewrite(write_source(tmp_path / "in.mp4", clicks=True), tmp_path / "out.mp4", Limits())
    film = b64encode((tmp_path / "out.mp4").read_bytes()).decode()
    html = f"<!doctype html><title>film</title><video muted src='data:video/mp4;base64,{film}'></video>"
    brightness = """time => new Promise((done, failed) => {
      const film = document.querySelector("video"), canvas = document.createElement("canvas");
      film.onerror = () => failed(film.error.message);
      film.onseeked = () => {
        canvas.getContext("2d").drawImage(film, 0, 0);
        done(canvas.getContext("2d").getImageData(20, 20, 1, 1).data[0]);
      };
      film.currentTime = time;
    })"""
    with opened(chromium, html, tmp_path) as it:
        it.wait_for("document.querySelector('video').readyState >= 2")
        size = "[document.querySelector('video').videoWidth, document.querySelector('video').videoHeight]"
        assert it.page.evaluate(size) == [96, 160]
        assert [it.page.evaluate(brightness, time) > 200 for time in (0.98, 1.02, 1.18, 1.22)] == [
            False,
            True,
            True,
            False,
        ]
        it.page.evaluate("document.querySelector('video').play()")
        it.wait_for("document.querySelector('video').webkitAudioDecodedByteCount > 0")
        assert it.complaints == []


def test_sound_that_mp4_does_not_hold_becomes_aac_in_step(tmp_path: Path):
    made = write_source(tmp_path / "aac.mp4", clicks=True)
    source = tmp_path / "in.mkv"
    with av.open(str(made)) as reader, av.open(str(source), "w") as writer:
        picture = writer.add_stream_from_template(reader.streams.video[0])
        track = writer.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = picture
                writer.mux(packet)
        reader.seek(0)
        for frame in reader.decode(reader.streams.audio[0]):
            writer.mux(track.encode(frame))
        writer.mux(track.encode(None))
    rewrite(source, tmp_path / "out.mp4", Limits())
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    assert np.allclose(loud(tmp_path / "out.mp4"), loud(source), atol=0.04)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotated_videos_come_out_upright(tmp_path: Path, turn: int):
    source = ROOT / f"../shared/data/decord/video_{turn}.mov"
    if not source.exists():
        pytest.skip("needs the real videos of ../shared/data")
    from catalog.video import sample_frames

    rewrite(source, tmp_path / "out.mp4", Limits())
    upright, _ = sample_frames(source)
    shown, _ = pictures(tmp_path / "out.mp4")
    assert shown[0].shape == upright[0].shape
    assert np.abs(shown[0].astype(int) - upright[0]).mean() < 5


def test_a_short_side_makes_large_pictures_smaller_and_leaves_small_ones(tmp_path: Path):
    source = write_source(tmp_path / "in.mp4", (96, 160))
    assert rewrite(source, tmp_path / "out.mp4", Limits(), short_side=48).width == 48
    assert rewrite(source, tmp_path / "out.mp4", Limits(), short_side=480).width == 96


def test_frames_that_cannot_be_decoded_are_left_out(tmp_path: Path):
    source = write_source(tmp_path / "in.ts", times=list(range(0, 300, 4)), format="mpegts")
    data = bytearray(source.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    source.write_bytes(data)
    assert 0 < rewrite(source, tmp_path / "out.mp4", Limits()).frames < 75


def test_a_file_that_is_cut_off_is_drawn_as_far_as_it_goes(tmp_path: Path):
    source = write_source(tmp_path / "in.mp4", clicks=True, options={"movflags": "+faststart"})
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    written = rewrite(source, tmp_path / "out.mp4", Limits())
    assert 0 < written.frames < 75
    assert len(pictures(tmp_path / "out.mp4")[0]) == written.frames


def test_a_file_without_any_video_is_an_error_with_its_code(tmp_path: Path):
    (tmp_path / "in.mp4").write_text("{}")
    with pytest.raises(VideoError) as error:
        rewrite(tmp_path / "in.mp4", tmp_path / "out.mp4", Limits())
    assert error.value.code == ErrorCode.NOT_A_VIDEO


def test_plain_ids_name_their_files_and_others_get_a_digest():
    assert file_stem("v-000_1") == "v-000_1"
    odd = ["../../etc/passwd", "a/b", "a_b.", "", "新品", "x" * 300, "A b", "."]
    stems = [file_stem(name) for name in odd]
    assert len(set(stems)) == len(odd)
    assert all(set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for stem in stems)
    assert max(map(len, stems)) < 120


def write_scored(folder: Path, world: WorldPaths, **settings: Any) -> Path:
    """A scoring job's folder for three of the world's videos, one that failed and one whose file is gone."""
    videos = pq.read_table(world.videos).to_pylist()[:3]
    uris = {row["video_id"]: str(world.folder / row["video_uri"]) for row in videos}
    per_second = {name: [0.1, 0.2, 0.3] for name in ("pe_per_second", "e_per_second", "p_per_second")}
    first, second, third = uris
    rows = [ok(first, **per_second), ok(second, **per_second), no_product(third) | {"e_per_second": [0.1, 0.2, 0.3]}]
    rows += [failed("broken"), ok("gone", **per_second)]
    scores = write_scores(folder / "scored", rows)
    table = pa.table({"video_id": [*uris, "broken", "gone"], "video_uri": [*uris.values(), "b.mp4", "gone.mp4"]})
    pq.write_table(table, folder / "videos.parquet")
    for part in (scores / "scores").iterdir():
        ids = set(pq.read_table(part)["video_id"].to_pylist()) - {"broken"}
        maps = [
            {
                "video_id": video_id, "e_uint8": spot([(3, 3), (9, 9), (12, 3)], 16).tobytes(),
                "e_min": 0.0, "e_max": 1.0, "seconds": 3, "height": 16, "width": 16,
                "product_quads": None if video_id == third else [QUAD.ravel().tolist(), None, None],
            }
            for video_id in sorted(ids)
        ]  # fmt: skip
        (scores / "maps").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(maps, schema=MAPS), scores / "maps" / part.name)
    config = {"videos": str(folder / "videos.parquet"), "save_maps": True, "sample_fps": 1.0} | settings
    (scores / "run.json").write_text(json.dumps({"config": config}))
    return scores


def run_overlay(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.overlay", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_job_draws_every_scored_video_and_says_what_became_of_the_others(
    tmp_path: Path, small_world: WorldPaths, capsys
):
    scores, output = write_scored(tmp_path, small_world), tmp_path / "out"
    done = run_overlay("--scores", str(scores), "--output", str(output), "--max-failed-fraction", "0.2")
    assert done.returncode == 3, done.stdout + done.stderr  # one of four failed
    assert "Traceback" not in done.stderr
    assert "4 videos to draw, 0 finished before, 1 without scores" in done.stdout
    assert "failed, not_found: 1, such as gone" in done.stdout
    rows = {row["video_id"]: row for row in pq.read_table(output / "overlays.parquet").to_pylist()}
    assert rows.pop("gone")["error_code"] == "not_found"
    assert len(rows) == 3 and all((output / row["file"]).exists() for row in rows.values())
    source = small_world.folder / pq.read_table(small_world.videos).to_pylist()[0]["video_uri"]
    shown, at = pictures(output / min(rows.values(), key=lambda row: row["video_id"])["file"])
    assert np.allclose(at, pictures(source)[1], atol=1e-3)
    assert shown[0].shape == (640 + bar_height(360, 640), 360, 3)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.mp4")}
    table = (output / "overlays.parquet").read_bytes()
    assert main(OverlayConfig(str(scores), str(output), dry_run=True)) == 0
    assert main(OverlayConfig(str(scores), str(output), video=("v000000", "v000001"))) == 0
    said = capsys.readouterr().out
    assert "1 videos to draw, 3 finished before" in said
    assert "0 videos to draw, 2 finished before" in said
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*.mp4")} == before
    assert (output / "overlays.parquet").read_bytes() == table  # and what became of the others is still told


@pytest.mark.parametrize(
    "video_id, uri, says",
    [("v000000", None, "videos table does not say where"), ("unmapped", "v.mp4", "score it with --save-maps")],
)
def test_a_video_without_address_or_map_is_a_row_that_says_so(
    tmp_path: Path, small_world: WorldPaths, video_id: str, uri: str | None, says: str
):
    scores = OutputFolder(str(write_scored(tmp_path, small_world)))
    draw = DrawActor(scores, str(tmp_path / "out"), SamplingConfig(), VideoLimits(), 0.8)
    row = {
        "video_id": video_id,
        "video_uri": uri,
        "part": "0.parquet",
        "bar_name": "PE",
        "per_sample": [0.1],
        "file": "x",
    }
    (drawn,) = [done for table in draw(pa.Table.from_pylist([row], schema=TO_DRAW)) for done in table.to_pylist()]
    assert (drawn["file"], drawn["error_code"]) == (None, "not_found")
    assert says in drawn["error_message"]


def test_job_refuses_to_mix_overlays_of_another_opacity(tmp_path: Path, small_world: WorldPaths):
    scores = write_scored(tmp_path, small_world)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/overlay.json").write_text(json.dumps({"opacity": 0.5, "config_hashes": ["c0ffee"]}))
    with pytest.raises(Refused, match="another --opacity"):
        main(OverlayConfig(str(scores), str(tmp_path / "out"), dry_run=True))
    main(OverlayConfig(str(scores), str(tmp_path / "out"), opacity=0.5, dry_run=True))


def test_job_draws_only_the_videos_that_are_asked_for(tmp_path: Path, small_world: WorldPaths, capsys):
    scores = write_scored(tmp_path, small_world)
    main(OverlayConfig(str(scores), str(tmp_path / "out"), video=("v000001",), dry_run=True))
    main(OverlayConfig(str(scores), str(tmp_path / "out"), limit=2, dry_run=True))
    said = capsys.readouterr().out
    assert "1 videos to draw, 0 finished before;" in said
    assert "1 videos to draw, 0 finished before, 1 without scores" in said  # broken comes first
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, says",
    [
        ({"video": ("nobody",)}, "no scores of a video of that id"),
        ({"opacity": 1.5}, "--opacity is 1.5"),
        ({"limit": 0}, "--limit is 0"),
        ({"limits": VideoLimits(video_timeout=0)}, "--video-timeout is 0"),
        ({"output": "/proc/x"}, "cannot be written"),
    ],
)
def test_job_refuses_at_the_door(tmp_path: Path, small_world: WorldPaths, more: dict[str, Any], says: str):
    scores = write_scored(tmp_path, small_world)
    with pytest.raises(Refused, match=says):
        main(OverlayConfig(**({"scores": str(scores), "output": str(tmp_path / "out")} | more)))


def test_job_refuses_scores_without_maps_and_without_their_table(tmp_path: Path, small_world: WorldPaths):
    (tmp_path / "a").mkdir()
    scores = write_scored(tmp_path / "a", small_world, save_maps=False)
    with pytest.raises(Refused, match="scored without --save-maps"):
        main(OverlayConfig(str(scores), str(tmp_path / "out")))
    (scores / "run.json").unlink()
    with pytest.raises(Refused, match="give the table that was scored with --videos"):
        main(OverlayConfig(str(scores), str(tmp_path / "out")))
