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
from scoring.settings import ProductConfig
from scoring.sift import Features

VIEW_VERSION = 2
"""raised when the same image would give another view"""


class ProductIndex:
    """Features of the products' catalogue images, computed when a product is first asked for and kept.

    images: for a product_id, its images (bytes of any format OpenCV reads) and, an image each, its outline
    as x1, y1, x2, y2, ... in pixels or None. At most ``capacity`` products are kept in memory; with ``folder`` (a path
    or URI) every view is also kept there, under a name made of the image's content and its outline.
    """

    def __init__(self, config: ProductConfig | None = None, capacity: int = 1000, folder: str | None = None):
        self.capacity = capacity
        self.folder = folder
        self._views: dict[str, list[View]] = {}

    def __contains__(self, product_id: str) -> bool:
        return product_id in self._views

    def __getitem__(self, product_id: str) -> list[View]:
        return self._views[product_id]

    def add(self, product_id: str, images: Sequence[bytes], outlines: Sequence[Sequence[float] | None]) -> list[View]:
        """Raises VideoError bad_product_image where no image is usable; one usable image is enough."""
        views, problems = [], []
        for number, (image, outline) in enumerate(zip(images, outlines, strict=True), start=1):
            try:
                views.append(self._view(image, outline))
            except (ValueError, cv2.error) as error:
                if getattr(error, "code", None) == cv2.Error.STS_NO_MEM:
                    raise
                problems.append(f"image {number}: {error}")
        if not views:
            raise VideoError(
                ErrorCode.BAD_PRODUCT_IMAGE,
                f"product {product_id} has no usable image; {'; '.join(problems)}",
                Stage.LOCATE,
            )
        if len(self._views) >= self.capacity:
            self._views.pop(next(iter(self._views)))
        self._views[product_id] = views
        return views

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
