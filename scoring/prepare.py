"""PREPARE, one video: fetch, decode once at the sampled seconds, locate the product, keep a small clip.

Runs in a supervised child process, because it touches untrusted bytes. Kernel code: imports neither Ray nor MLflow.
"""

import ctypes
import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cv2
import numpy as np

from catalog import storage
from catalog.errors import ErrorCode, Stage, VideoError
from catalog.ranges import RemoteFile, opened
from catalog.sampling import SamplingConfig
from catalog.video import iter_frames, read_headers
from scoring.fingerprints import Images, fingerprints
from scoring.product import Detection, ProductIndex, Search, View
from scoring.settings import ProductConfig
from training.decode import network_input

FETCH_TIMEOUT_S = 120.0
MAX_IMAGE_BYTES = 64 * 2**20
KEPT_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Request:
    """One video to prepare; URIs are absolute."""

    video_uri: str
    product_id: str | None = None
    image_uris: tuple[str, ...] = ()
    image_outlines: tuple[tuple[float, ...] | None, ...] | None = None


@dataclasses.dataclass(frozen=True)
class FingerprintOf:
    """Asks the child for the request's ``scoring.fingerprints`` alone."""

    request: Request


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is kept of a video."""

    clip: np.ndarray
    """uint8 (S, size, size, 3) RGB, a sampled second each, squashed"""
    detections: list[Detection | None] | None
    """per second; None where the video has no product"""
    width: int
    height: int
    fps: float | None
    duration_s: float | None
    codec: str
    core_seconds: dict[str, float]
    """CPU time by stage: fetch, decode, locate"""
    fetch_s: float
    """wall time until the video was here"""
    rejections: dict[str, int] = dataclasses.field(default_factory=dict)
    """why frames are without the product, see ``scoring.pose.Rejection``"""


def make_child(*settings: Any) -> Callable[[Request | FingerprintOf], Prepared | str | None]:
    """``make_prepare``'s function, that also says what a row depends on: files that hang, hang the child alone."""
    prepare, images = make_prepare(*settings), Images()
    fingerprint = fingerprints(images)

    def answer(asked: Request | FingerprintOf) -> Prepared | str | None:
        if isinstance(asked, Request):
            return prepare(asked)
        video = asked.request
        if video.product_id is not None:
            images[video.product_id] = (video.image_uris, video.image_outlines)
        return fingerprint(video.video_uri, video.product_id)

    return answer


def make_prepare(
    sampling: SamplingConfig, product: ProductConfig, input_size: int, product_cache: str | None = None
) -> Callable[[Request], Prepared]:
    """The function that prepares one video after another and keeps the products' features between them.

    product_cache: a folder that keeps them between runs too.
    """
    cv2.setNumThreads(1)
    keep_freed_memory()
    index = ProductIndex(folder=product_cache)

    def prepare(request: Request) -> Prepared:
        started = time.thread_time()
        views = _views(index, request) if request.product_id is not None else None
        locate_s = time.thread_time() - started
        clip, grays = [], []
        width = height = 0
        asked, asked_cpu = time.perf_counter(), time.process_time()  # object stores are read by a thread of their own
        whole = sampling.decoder == "decord"  # it takes paths alone
        max_bytes = int(sampling.max_megabytes * 1e6)
        with opened(request.video_uri, max_bytes, FETCH_TIMEOUT_S, whole) as source:
            fetch_s, fetch_core_s = time.perf_counter() - asked, time.process_time() - asked_cpu
            started = time.thread_time()
            headers = read_headers(source, sampling.max_duration)
            for frame in iter_frames(
                source,
                fps=sampling.sample_fps,
                max_seconds=sampling.max_seconds,
                max_duration_s=sampling.max_duration,
                backend=sampling.decoder,
            ):
                if not clip:
                    width, height = frame.size
                clip.append(network_input(frame, input_size))
                if views is not None:
                    grays.append(frame.gray(product.working_short_side))
            if isinstance(source, RemoteFile):
                fetch_s, fetch_core_s = fetch_s + source.waited_s, fetch_core_s + source.core_s
        decoded = time.thread_time()
        search = Search(grays, product, clip[: len(grays)])
        detections = None if views is None else search.locate(views)
        return Prepared(
            clip=np.stack(clip),
            detections=detections,
            width=width,
            height=height,
            fps=headers.frame_rate,
            duration_s=headers.duration_s,
            codec=headers.codec,
            core_seconds={
                "fetch": fetch_core_s,
                "decode": decoded - started,
                "locate": locate_s + time.thread_time() - decoded,
            },
            fetch_s=fetch_s,
            rejections={str(reason): count for reason, count in search.rejections.items()},
        )

    return prepare


def keep_freed_memory() -> None:
    """Else glibc hands SIFT's image pyramids back to the kernel after every frame, only to fault them in again."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    with suppress(AttributeError):  # another C library
        for parameter in (m_trim_threshold, m_mmap_threshold):
            ctypes.CDLL(None).mallopt(parameter, KEPT_BYTES)


def _views(index: ProductIndex, request: Request) -> list[View]:
    assert request.product_id is not None
    if request.product_id in index:
        return index[request.product_id]
    images: list[bytes | str] = []
    absent = None
    for uri in request.image_uris:
        try:
            images.append(storage.read_bytes(uri, MAX_IMAGE_BYTES, FETCH_TIMEOUT_S))
        except OSError as error:
            images.append(problem := f"{uri} cannot be read: {storage.reason(error)}")
            absent = VideoError(
                ErrorCode.NO_PRODUCT_IMAGE, f"product {request.product_id}: image {problem}", Stage.LOCATE
            )
            if not isinstance(error, FileNotFoundError | PermissionError):
                raise absent from error  # it may be there the next time, and other scores with it
    if absent is not None and all(isinstance(image, str) for image in images):
        raise absent
    return index.add(request.product_id, images, request.image_outlines or (None,) * len(images))
