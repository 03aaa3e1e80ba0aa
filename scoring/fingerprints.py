"""Names for the content that a row depends on, cheap enough for a whole catalogue."""

import hashlib
from collections.abc import Callable

from catalog import storage
from catalog.errors import Refused

Images = dict[str, tuple[tuple[str, ...], tuple[tuple[float, ...] | None, ...] | None]]
"""product_id -> its photos' URIs, and the outlines in them where the table has any"""


def fingerprints(images: Images) -> Callable[[str, str | None], str | None]:
    """A function of a video's URI and product_id: names the content of the video's file and of its product's images
    (``storage.fingerprint``: not read whole); None where one of the files cannot be had."""
    of_products: dict[str, str] = {}

    def of_product(product_id: str) -> str:
        if product_id not in of_products:
            uris, outlines = images.get(product_id, ((), None))
            of_products[product_id] = f"{[storage.fingerprint(uri) for uri in uris]} {outlines}"
        return of_products[product_id]

    def of_video(video_uri: str, product_id: str | None) -> str | None:
        try:
            content = storage.fingerprint(video_uri) + ("" if product_id is None else of_product(product_id))
        except (OSError, Refused, ValueError):  # scoring will say why
            return None
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    return of_video
