"""Products' catalogue images made ready once, and kept.

Kernel code: numpy and OpenCV alone.
"""

from collections.abc import Sequence

import cv2

from catalog.errors import ErrorCode, Stage, VideoError
from scoring.catalogue_image import View, view_of
from scoring.settings import ProductConfig


class ProductIndex:
    """Features of the products' catalogue images, computed when a product is first asked for and kept.

    images: for a product_id, its images (bytes of any format OpenCV reads) and, an image each, its outline
    as x1, y1, x2, y2, ... in pixels or None. At most ``capacity`` products are kept.
    """

    def __init__(self, config: ProductConfig | None = None, capacity: int = 1000):
        self.capacity = capacity
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
                views.append(view_of(image, outline))
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
