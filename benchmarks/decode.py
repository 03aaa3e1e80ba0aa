"""Ways to sample one frame a second, compared in one run: speed, exactness, behaviour on odd files.

    python -m benchmarks.decode

Needs the real videos of ../shared/data. One thread each; a time is the best of `REPEATS` runs, the ways
taking turns. Every file of the robustness part runs in its own child process with a time limit.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from catalog.errors import VideoError
from catalog.isolation import IsolatedWorker
from catalog.video import iter_frames
from scoring.settings import ProductConfig

DATA = Path(__file__).parents[1] / "../shared/data"
VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}
WORKING_PX = ProductConfig().working_short_side
REPEATS = 3
TIMEOUT_S = 60.0
MEMORY_LIMIT_BYTES = 4 << 30

Samples = tuple[np.ndarray, np.ndarray]


def plain_decord(path: str) -> Samples:
    """What most scripts do: the frame nearest below each second by the average frame rate."""
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    places = [round(k * reader.get_avg_fps()) for k in range(60)]
    places = [place for place in places if place < len(reader)]
    return reader.get_batch(places).asnumpy(), reader.get_frame_timestamp(places)[:, 0]


def plain_pyav(path: str) -> Samples:
    """Decodes every frame and converts the first one at or after each second."""
    frames, times = [], []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        start_s = (container.start_time or 0) / av.time_base
        for frame in container.decode(stream):
            seconds = frame.time - start_s
            while len(frames) < 60 and seconds >= len(frames) - 1e-6:
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(seconds)
    return np.stack(frames), np.array(times)


def our_pyav(path: str) -> Samples:
    return _sampled(path, "pyav")


def our_decord(path: str) -> Samples:
    return _sampled(path, "decord")


def our_gray(path: str) -> Samples:
    """What the product search takes: luma at its working size, never RGB."""
    frames = [(frame.gray(WORKING_PX), frame.time) for frame in iter_frames(path)]
    return np.stack([picture for picture, _ in frames]), np.array([time for _, time in frames])


def _sampled(path: str, backend: Any) -> Samples:
    frames = [(frame.rgb(), frame.time) for frame in iter_frames(path, backend=backend)]
    return np.stack([picture for picture, _ in frames]), np.array([time for _, time in frames])


WAYS: dict[str, Callable[[str], Samples]] = {
    "decord get_batch": plain_decord,
    "PyAV, every frame": plain_pyav,
    "iter_frames, pyav": our_pyav,
    f"iter_frames, pyav, gray({WORKING_PX})": our_gray,
    "iter_frames, decord": our_decord,
}


def robustly(argument: tuple[str, str]) -> tuple[int, float]:
    """In the child: the number of samples and the mean of the pictures."""
    way, path = argument
    frames, _ = WAYS[way](path)
    return len(frames), float(frames.mean())


def write_made_video(path: Path) -> None:
    """20 s of 576x1024 H.264 with B-frames: moving noise under a moving bar."""
    random = np.random.default_rng(0)
    noise = cv2.GaussianBlur(random.integers(0, 256, (1024, 2000, 3)).astype(np.uint8), (9, 9), 0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"crf": "26", "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = 576, 1024, "yuv420p"
        for n in range(600):
            picture: Any = np.ascontiguousarray(noise[:, 2 * n : 2 * n + 576])
            picture[(7 * n) % 900 : (7 * n) % 900 + 100] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def compare_speed(paths: list[Path], console: Console) -> None:
    best = {(way, path): float("inf") for way in WAYS for path in paths}
    samples: dict[tuple[str, Path], Samples] = {}
    for _ in range(REPEATS):
        for path in track(paths, "speed", console=console, transient=True):
            for way, sample in WAYS.items():
                start = time.process_time()
                samples[way, path] = sample(str(path))
                best[way, path] = min(best[way, path], time.process_time() - start)
    minutes = sum(av_duration_s(path) for path in paths) / 60
    table = Table(title=f"{len(paths)} short-form videos, {minutes:.1f} min, one frame a second")
    for column in (
        "way",
        "CPU s a minute of video",
        "speed / decord get_batch",
        "same frame chosen",
    ):
        table.add_column(column)
    table.add_column("mean |difference| of RGB levels")
    for way in WAYS:
        speedup = np.exp(np.mean([np.log(best["decord get_batch", p] / best[way, p]) for p in paths]))
        total = sum(best[way, path] for path in paths)
        chosen, difference = agreement([(samples[way, p], samples["PyAV, every frame", p]) for p in paths])
        table.add_row(way, f"{total / minutes:.2f}", f"{speedup:.2f}", chosen, difference)
    console.print(table)


def av_duration_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / av.time_base


def agreement(pairs: list[tuple[Samples, Samples]]) -> tuple[str, str]:
    """Seconds that have the frame decoding everything finds, and the pixels' difference there."""
    due = sum(len(reference_times) for _, (_, reference_times) in pairs)
    same, differences = 0, []
    for (frames, times), (reference, reference_times) in pairs:
        for k in range(min(len(times), len(reference_times))):
            if abs(times[k] - reference_times[k]) < 1e-3:
                same += 1
                if frames.ndim == 4:
                    differences.append(np.abs(frames[k].astype(int) - reference[k]).mean())
    return f"{same} of {due}", f"{np.mean(differences):.2f}" if differences else "-"


def compare_robustness(paths: list[Path], console: Console) -> None:
    ways = [way for way in WAYS if "gray" not in way]
    counts: dict[str, Counter[str]] = {way: Counter() for way in ways}
    odd = Table(title=f"{len(paths)} videos: where the ways differ from one another")
    for column in ("file", *ways):
        odd.add_column(column)
    with IsolatedWorker("benchmarks.decode:robustly", memory_limit_bytes=MEMORY_LIMIT_BYTES) as worker:
        for path in track(paths, "robustness", console=console, transient=True):
            found = {}
            for way in ways:
                try:
                    count, _ = worker.call((way, str(path)), TIMEOUT_S)
                    found[way] = f"{count} frames"
                    counts[way]["read"] += 1
                except VideoError as error:
                    found[way] = f"{error.code}: {error.message.removeprefix(f'{path}: ')[:70]}"
                    counts[way][str(error.code)] += 1
            if len(set(found.values())) > 1:
                odd.add_row(str(path.relative_to(DATA)), *found.values())
    console.print(odd)
    for way in ways:
        console.print(f"{way}: {dict(counts[way])}")


def measure_isolation(console: Console) -> None:
    with IsolatedWorker("numpy:negative") as worker:
        start = time.perf_counter()
        worker.call(1, TIMEOUT_S)
        started_s = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(1000):
            worker.call(1, TIMEOUT_S)
        call_s = (time.perf_counter() - start) / 1000
        clip = np.ones((60, 360, 640, 3), np.uint8)
        start = time.perf_counter()
        worker.call(clip, TIMEOUT_S)
        clip_s = time.perf_counter() - start
    with IsolatedWorker("benchmarks.decode:robustly") as worker:
        start = time.perf_counter()
        with suppress(VideoError):
            worker.call(("iter_frames, pyav", "absent.mp4"), TIMEOUT_S)
        decoder_s = time.perf_counter() - start
    console.print(
        f"child process: {started_s:.2f} s to start with numpy, {decoder_s:.2f} s with av and cv2 too; "
        f"{call_s * 1e3:.2f} ms a call; {clip_s:.2f} s for {clip.nbytes / 1e6:.0f} MB there and back"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not DATA.is_dir():
        sys.exit("benchmarks.decode needs the real videos of ../shared/data, which are not here")
    cv2.setNumThreads(1)
    console = Console(width=200)
    short_form = sorted(p for p in (DATA / "tiktok_popularity").glob("*.mp4") if "corrupt" not in p.name)
    everything = sorted(p for p in DATA.rglob("*") if p.suffix in VIDEO_SUFFIXES)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.mp4"
        write_made_video(made)
        compare_speed([*short_form, made], console)
    measure_isolation(console)
    compare_robustness(everything, console)


if __name__ == "__main__":
    main()
