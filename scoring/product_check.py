"""What a catalogue's owner should know of the product images: which can be looked for in videos, and why not.

Runs in a supervised child process, because it touches untrusted bytes. Kernel code: imports neither Ray nor MLflow.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import cv2

from catalog import storage
from catalog.errors import VideoError
from scoring.prepare import FETCH_TIMEOUT_S, MAX_IMAGE_BYTES, Request
from scoring.product_index import ProductIndex


@dataclasses.dataclass(frozen=True)
class ImageReport:
    """One image of a product."""

    image_uri: str
    localisable: bool
    features: int
    """0 where not localisable"""
    problem: str | None
    """why not"""
    content: str | None
    """digest of the file; None where it cannot be read"""


def make_check(product_cache: str | None) -> Callable[[Request], list[ImageReport]]:
    """The function that looks at one product's images; ``video_uri`` of a request is not looked at."""
    cv2.setNumThreads(1)
    index = ProductIndex(folder=product_cache)

    def check(request: Request) -> list[ImageReport]:
        outlines = request.image_outlines or (None,) * len(request.image_uris)
        return [_report(index, *image) for image in zip(request.image_uris, outlines, strict=True)]

    return check


def _report(index: ProductIndex, uri: str, outline: tuple[float, ...] | None) -> ImageReport:
    try:
        image = storage.read_bytes(uri, MAX_IMAGE_BYTES, FETCH_TIMEOUT_S)
    except OSError as error:
        return ImageReport(uri, False, 0, f"cannot be read: {storage.reason(error)}", None)
    content = hashlib.sha256(image).hexdigest()[:16]
    try:
        (view,) = index.add("", [image], [outline])
    except VideoError as error:
        return ImageReport(uri, False, 0, error.message.partition("image 1: ")[2], content)
    return ImageReport(uri, True, len(view.features), None, content)
