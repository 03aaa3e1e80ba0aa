"""What of a catalogue image is the product, and which images cannot be matched."""

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from catalog.errors import ErrorCode, Stage, VideoError
from scoring.product import ProductIndex, locate, view_of
from tests.cards import CARD, UPRIGHT, draw_card, iou, placed, png, quad_in, scene


def on(background: np.ndarray, left: int = 90, top: int = 60) -> np.ndarray:
    pixels = background.copy()
    pixels[top : top + CARD.shape[0], left : left + CARD.shape[1]] = CARD
    return pixels


def photo(style: str) -> tuple[np.ndarray, tuple[int, int]]:
    """A catalogue photo of the card and where its top left corner is."""
    height, width = CARD.shape[0] + 130, CARD.shape[1] + 200
    if style == "edge to edge":
        return CARD, (0, 0)
    if style == "transparent":
        pixels = np.zeros((height, width, 4), np.uint8)
        pixels[60 : 60 + CARD.shape[0], 90 : 90 + CARD.shape[1]] = np.dstack([CARD, np.full(CARD.shape[:2], 255)])
        return pixels, (90, 60)
    plain = {"white": (255, 255, 255), "grey": (120, 122, 118)}[style]
    return on(np.full((height, width, 3), plain, np.uint8)), (90, 60)


@pytest.mark.parametrize("style", ["edge to edge", "white", "grey", "transparent"])
def test_plain_and_transparent_backgrounds_do_not_belong_to_the_product(style: str):
    pixels, corner = photo(style)
    view = view_of(png(pixels))
    scale = min(1.0, 640 / max(pixels.shape[:2]))
    left, top = np.array(corner) * scale
    right, bottom = (np.array(corner) + CARD.shape[1::-1]) * scale
    for polygon in (view.outline, view.corners):
        np.testing.assert_allclose([polygon.min(axis=0), polygon.max(axis=0)], [[left, top], [right, bottom]], atol=2)
    quad = quad_in(scene(), *UPRIGHT)
    frame = placed(scene(), CARD, quad)
    (found,) = locate([frame], [view])
    assert found is not None
    assert iou(found, quad, frame) >= 0.95


def bounds(polygon: np.ndarray) -> list[float]:
    """Left, top, right, bottom."""
    return [*polygon.min(axis=0).tolist(), *polygon.max(axis=0).tolist()]


@pytest.mark.parametrize(("width", "height"), [(270, 265), (120, 600)])
def test_a_small_product_on_white_is_not_taken_for_the_whole_photo(width: int, height: int):
    pixels = np.full((1600, 1600, 3), 255, np.uint8)
    left, top = 800 - width // 2, 800 - height // 2
    pixels[top : top + height, left : left + width] = draw_card(7, width, height)
    pixels[::200, ::200] = 60  # dust
    true = np.array([left, top, left + width, top + height]) * 0.4
    np.testing.assert_allclose(bounds(view_of(png(pixels)).outline), true, atol=2)


def test_all_print_of_white_packaging_on_white_belongs_to_the_product():
    pixels = np.full((800, 800, 3), 255, np.uint8)
    pixels[100:700, 200:600] = 250
    pixels[160:380, 260:540] = cv2.resize(CARD, (280, 220), interpolation=cv2.INTER_AREA)
    for line in range(3):
        cv2.putText(pixels, "moisture", (230, 500 + 60 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (90, 90, 90), 2)
    left, top, right, bottom = bounds(view_of(png(pixels)).outline)
    assert left < 233 * 0.8
    assert abs(top - 160 * 0.8) < 2
    assert abs(right - 540 * 0.8) < 2
    assert bottom > 615 * 0.8


def test_outline_that_is_given_is_used():
    pixels = on(scene(700, 700, seed=5), left=90, top=60)
    height, width = CARD.shape[:2]
    outline = [90, 60, 90 + width, 60, 90 + width, 60 + height, 90, 60 + height]
    view = view_of(png(pixels), outline)
    scale = 640 / 700
    np.testing.assert_allclose(view.corners, np.reshape(outline, (4, 2)) * scale, atol=0.01)
    inside = (view.features.points > np.array([86, 56]) * scale) & (
        view.features.points < np.array([94 + width, 64 + height]) * scale
    )
    assert inside.all()
    quad = quad_in(scene(), *UPRIGHT)
    frame = placed(scene(), CARD, quad)
    (found,) = locate([frame], [view])
    assert found is not None
    assert iou(found, quad, frame) >= 0.95


def test_half_the_packaging_given_as_outline_finds_that_half():
    height, width = CARD.shape[:2]
    view = view_of(png(CARD), [0, 0, width, 0, width, height / 2, 0, height / 2])
    quad = quad_in(scene(), *UPRIGHT)
    (found,) = locate([placed(scene(), CARD, quad)], [view])
    assert found is not None
    upper_half = (0.25, 0.2, 0.75, 0.2, 0.75, 0.45, 0.25, 0.45)
    np.testing.assert_allclose(found.quad, np.reshape(upper_half, (4, 2)), atol=0.02)


def bmp_header(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


UNUSABLE = {
    "empty file": (b"", "not an image"),
    "text": (b"<html>404</html>", "not an image"),
    "drawing": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "not an image"),
    "half a file": (png(CARD)[:60], "not an image"),
    "white": (png(np.full((300, 300, 3), 255, np.uint8)), "0 features.*sharp photo"),
    "one colour, transparent": (png(np.full((300, 300, 4), (200, 30, 30, 0), np.uint8)), "features.*sharp photo"),
    "one pixel": (png(np.full((1, 1, 3), 255, np.uint8)), "features.*sharp photo"),
    "a hair": (png(np.full((1, 10_000, 3), 255, np.uint8)), "too narrow, 10000 x 1 px"),
    "33,000 x 33,000 px": (bmp_header(33_000, 33_000), "too large"),
    "tiny": (png(cv2.resize(CARD, (9, 12))), "features.*sharp photo"),
    "one colour, as large as a frame": (png(np.full((1920, 1080, 3), (30, 90, 200), np.uint8)), "0 features"),
    "one circle": (png(cv2.circle(np.full((300, 300, 3), 255, np.uint8), (150, 150), 80, 0, 3)), "features"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_image_that_cannot_be_matched_is_a_bad_product_image_with_its_reason(kind: str):
    content, reason = UNUSABLE[kind]
    with pytest.raises(VideoError, match=reason) as failure:
        ProductIndex().add("p1", [content], [None])
    assert failure.value.code == ErrorCode.BAD_PRODUCT_IMAGE
    assert failure.value.stage == Stage.LOCATE
    assert "p1" in failure.value.message
    assert "image 1" in failure.value.message


@pytest.mark.parametrize("outline", [[0, 0, 1, 0, 1, 1, 0, 1], [900, 900, 990, 900, 990, 990, 900, 990]])
def test_an_outline_in_fractions_or_off_the_photo_is_named(outline: list[float]):
    with pytest.raises(ValueError, match=r"within its outline.*check the outline, in pixels of the upright 352 x 440"):
        view_of(png(CARD), outline)


def test_one_usable_image_is_enough():
    index = ProductIndex()
    views = index.add("p1", [UNUSABLE["white"][0], png(CARD), b""], [None, None, None])
    assert len(views) == 1
    assert "p1" in index
    assert index["p1"] is views


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")]
)
def test_a_photo_is_turned_upright_before_its_outline_is_laid_on_it(form: str, mode: str):
    lying = Image.fromarray(cv2.rotate(CARD, cv2.ROTATE_90_COUNTERCLOCKWISE)).convert(mode)
    if mode == "RGBA":
        lying.putpixel((0, 0), (255, 255, 255, 0))  # else WebP leaves alpha out
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn it right
    height, width = CARD.shape[:2]
    outline = [0, 0, width, 0, width, height, 0, height]
    frame = placed(scene(), CARD, quad_in(scene(), 0.2, 0.2, 0.7, 0.2, 0.7, 0.7, 0.2, 0.7))
    (found,) = locate([frame], [view_of(saved(lying, form, exif=exif).tobytes(), outline)])
    assert found is not None
    assert iou(found, quad_in(frame, 0.2, 0.2, 0.7, 0.2, 0.7, 0.7, 0.2, 0.7), frame) > 0.9


def saved(image: Image.Image, form: str, **options: Any) -> np.ndarray:
    content = io.BytesIO()
    image.save(content, form, **options)
    return np.frombuffer(content.getvalue(), np.uint8)


@pytest.mark.parametrize(
    "kind", ["grey", "16 bit", "12 bit, transparent", "jpeg", "cmyk", "palette", "animated", "20,000 px"]
)
def test_images_of_other_kinds_are_read(kind: str):
    bgr, image = cv2.cvtColor(CARD, cv2.COLOR_RGB2BGR), Image.fromarray(CARD)
    strip = np.full((6000, 20_000), 255, np.uint8)
    strip[500:5500, 500:4500] = cv2.resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), (4000, 5000))
    opaque = np.full(CARD.shape[:2], 65535, np.uint16)
    content = {
        "grey": cv2.imencode(".png", cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))[1],
        "16 bit": cv2.imencode(".png", bgr.astype(np.uint16) * 257)[1],
        "12 bit, transparent": cv2.imencode(".png", np.dstack([bgr.astype(np.uint16) * 16, opaque]))[1],
        "jpeg": cv2.imencode(".jpg", bgr)[1],
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "palette": saved(image.convert("P"), "PNG"),
        "animated": saved(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)]),
        "20,000 px": cv2.imencode(".jpg", strip)[1],
    }[kind].tobytes()
    (found,) = locate([placed(scene(), CARD, quad_in(scene(), *UPRIGHT))], [view_of(content)])
    assert found is not None
    np.testing.assert_allclose(found.quad, np.reshape(UPRIGHT, (4, 2)), atol=0.02)
