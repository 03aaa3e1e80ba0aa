"""make_world: videos, products, sales and the truth about them, written to one folder."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

import cv2

from catalog.errors import Refused
from catalog.world.config import WorldConfig, WorldPaths
from catalog.world.masks import write_masks
from catalog.world.render import VideoTruth, make_video, video_name
from catalog.world.script import draw_script
from catalog.world.tables import write_products, write_sales, write_truth, write_videos


def make_world(
    folder: Path,
    *,
    videos: int = 120,
    seed: int = 0,
    sales_effect: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    config: WorldConfig | None = None,
) -> WorldPaths:
    """Make a world of `videos` videos under `folder`; the same seed gives the same world for any `workers`.

    Args:
        sales_effect: True: true PE makes sales lift. False: the null world, where lift is noise; its sales are written
            beside the others in any case (``WorldPaths.null_sales``).
        workers: processes; None takes every core this process may use, 1 works in this process.
        progress: called with (videos done, videos in all) after each.

    A folder that already holds this very world is left as it is; one that holds another is Refused.
    Video i depends on seed and config only. Raises TimeoutError where no video is finished for
    config.video_timeout_s.
    """
    config = config or WorldConfig()
    if videos < 1:
        raise Refused(f"a world of {videos} videos cannot be made; ask for 1 or more")
    paths = WorldPaths(Path(folder))
    settings = {"made_by": code_digest(), "videos": videos, "seed": seed, "sales_effect": sales_effect}
    manifest = json.dumps({**settings, "config": asdict(config)}, indent=2)
    if paths.manifest.exists():
        if paths.manifest.read_text() == manifest:
            return paths
        raise Refused(
            f"{paths.folder} holds another made-up world, or one that another version of this code made; "
            "remove it or choose another folder"
        )
    (paths.folder / "videos").mkdir(parents=True, exist_ok=True)
    truths: list[VideoTruth] = []
    for truth in make_videos(paths.folder, seed, videos, config, workers or len(os.sched_getaffinity(0))):
        truths.append(truth)
        if progress:
            progress(len(truths), videos)
    truths.sort(key=lambda truth: truth.index)
    scripts = [draw_script(config, seed, index) for index in range(videos)]
    write_masks(paths.folder, [(video_name(truth.index), truth.packed_masks) for truth in truths])
    write_videos(paths, config, seed, scripts, truths)
    write_products(paths, seed, scripts)
    lifts = write_sales(paths.sales, config, seed, scripts, truths, effect=sales_effect)
    write_sales(paths.null_sales, config, seed, scripts, truths, effect=False)
    write_truth(paths, truths, lifts)
    paths.manifest.write_text(manifest)
    return paths


def code_digest() -> str:
    """Of this package's source: a world made by other code is another world."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def make_videos(folder: Path, seed: int, videos: int, config: WorldConfig, workers: int) -> Iterator[VideoTruth]:
    """Truth of every video, in the order in which they are finished."""
    if workers == 1 or videos == 1:
        yield from (make_video(folder, seed, index, config) for index in range(videos))
        return
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, videos), context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        pending = {pool.submit(make_video, folder, seed, index, config) for index in range(videos)}
        while pending:
            done, pending = wait_for_any(pending, config.video_timeout_s)
            yield from (future.result() for future in done)
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def wait_for_any(
    pending: set[Future[VideoTruth]], timeout_s: float
) -> tuple[set[Future[VideoTruth]], set[Future[VideoTruth]]]:
    done, left = wait(pending, timeout=timeout_s, return_when=FIRST_COMPLETED)
    if not done:
        raise TimeoutError(f"no video was finished in {timeout_s:g} s; give fewer workers or a longer video_timeout_s")
    return done, left
