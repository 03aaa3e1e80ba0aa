"""Products' catalogue images made ready once, and kept: in memory, and between runs in a folder that workers share.

Kernel code: numpy and OpenCV alone.
"""

import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress

import cv2
import numpy as np

from catalog import storage
from catalog.errors import ErrorCode, Stage, VideoError
from scoring.catalogue_image import DESCRIPTOR_LEVELS, View, view_of
from scoring.sift import Features

VIEW_VERSION = 2
"""raised when the same image would give another view"""
CAPACITY_BYTES = 256 * 2**20
"""of views that a process keeps: 100 photos full of print, 1000 of little"""


class ProductIndex:
    """Features of the products' catalogue images, computed when a product is first asked for and kept.

    At most ``capacity_bytes`` of views, and of reasons why a product has none, are kept in memory; with ``folder`` (a
    path or URI) every view is also kept there, under a name made of the image's content and its outline.
    """

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES, folder: str | None = None):
        self.capacity_bytes = capacity_bytes
        self.folder = folder
        self._kept: dict[str, list[View] | str] = {}
        """a product's views, or why it has none"""
        self._bytes = 0

    def __contains__(self, product_id: str) -> bool:
        return product_id in self._kept

    def __getitem__(self, product_id: str) -> list[View]:
        """Raises VideoError bad_product_image where ``add`` did."""
        kept = self._kept[product_id]
        if isinstance(kept, str):
            raise VideoError(ErrorCode.BAD_PRODUCT_IMAGE, kept, Stage.LOCATE)
        return kept

    def add(
        self, product_id: str, images: Sequence[bytes | str], outlines: Sequence[Sequence[float] | None]
    ) -> list[View]:
        """Raises VideoError bad_product_image where no image is usable; one usable image is enough.

        images: bytes of any format OpenCV reads, or in words why they cannot be had. outlines: an image each, as x1,
        y1, x2, y2, ... in pixels, or None.
        """
        views, problems = [], []
        for number, (image, outline) in enumerate(zip(images, outlines, strict=True), start=1):
            try:
                if isinstance(image, str):
                    raise ValueError(image)
                views.append(self._view(image, outline))
            except (ValueError, cv2.error) as error:
                if getattr(error, "code", None) == cv2.Error.STS_NO_MEM:
                    raise
                problems.append(f"image {number}: {error}")
        kept = views or f"product {product_id} has no usable image; {'; '.join(problems)}"
        self._bytes += _size(kept) - _size(self._kept.pop(product_id, ""))
        self._kept[product_id] = kept
        while self._bytes > self.capacity_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.pop(next(iter(self._kept))))
        return self[product_id]

    def _view(self, image: bytes, outline: Sequence[float] | None) -> View:
        if self.folder is None:
            return view_of(image, outline)
        key = hashlib.sha256(f"{VIEW_VERSION} {None if outline is None else list(outline)!r} ".encode() + image)
        uri = f"{self.folder}/{key.hexdigest()}.npz"
        with suppress(Exception):  # a cache: whatever is wrong with the file or its place, the image is here
            return unpacked(storage.read_bytes(uri))
        view = view_of(image, outline)
        with suppress(OSError):
            storage.write_bytes_atomically(uri, packed(view))
        return view


def _size(kept: list[View] | str) -> int:
    return len(kept) if isinstance(kept, str) else sum(view.nbytes for view in kept)


def packed(view: View) -> bytes:
    """A view as the content of an .npz file; ``unpacked`` gives back the same one."""
    features = view.features
    geometry = np.column_stack([features.points, features.sizes, features.angles])
    picture = cv2.imencode(".png", view.picture)[1]
    content = io.BytesIO()
    np.savez(
        content,
        geometry=geometry,
        descriptors=np.round(features.descriptors * DESCRIPTOR_LEVELS).astype(np.uint8),
        outline=view.outline,
        corners=view.corners,
        picture=picture,
        colours=np.empty(0, np.uint8) if view.colours is None else view.colours,
    )
    return content.getvalue()


def unpacked(content: bytes) -> View:
    """Raises one of many exceptions where it is not what ``packed`` gave."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        geometry = stored["geometry"]
        descriptors = stored["descriptors"].astype(np.float32) / DESCRIPTOR_LEVELS
        features = Features(geometry[:, :2], geometry[:, 2], geometry[:, 3], descriptors)
        picture = cv2.imdecode(stored["picture"], cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise ValueError("holds no picture")
        colours = stored["colours"] if stored["colours"].size else None
        return View(features, stored["outline"], stored["corners"], picture, colours)
