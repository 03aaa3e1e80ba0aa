"""Drawn product packaging, with print that local features can hold on to, and its catalogue photos."""

from dataclasses import dataclass

import cv2
import numpy as np

from catalog.world.script import Stream, stream

LONG_SIDE_PX = 440
ASPECTS = (0.66, 0.72, 0.8, 1.0, 1.25)
SYLLABLES = (
    "ka",
    "vi",
    "lu",
    "mo",
    "ra",
    "ne",
    "to",
    "sel",
    "bru",
    "fi",
    "zen",
    "dor",
    "pla",
    "qui",
    "ham",
    "ost",
    "ye",
    "gri",
)
FONTS = (
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_SIMPLEX,
)
CATEGORIES = ("snack", "skincare", "tea", "toy", "gadget")


@dataclass(frozen=True)
class Photo:
    """A catalogue photo: RGB or RGBA uint8 (H, W, 3 or 4), and the packaging's corners in its pixels."""

    pixels: np.ndarray
    outline: list[float]
    suffix: str


def colour(hue_degrees: float, saturation: float, value: float) -> tuple[int, int, int]:
    """RGB of a hue in degrees, saturation and value in [0, 1]."""
    hsv = np.array([[[hue_degrees % 360 / 2, saturation * 255, value * 255]]], np.uint8)
    red, green, blue = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def word(rng: np.random.Generator, syllables: int) -> str:
    return "".join(rng.choice(SYLLABLES, syllables))


def print_line(
    image: np.ndarray, text: str, box: tuple[int, int, int, int], ink: tuple[int, int, int], font: int
) -> None:
    """Print `text` into `box` (left, top, width, height), as large as it fits."""
    left, top, width, height = box
    (wide, high), base = cv2.getTextSize(text, font, 1.0, 2)
    scale = min(width / max(wide, 1), height / max(high + base, 1))
    thick = max(1, round(scale * 2.4))
    cv2.putText(image, text, (left, int(top + scale * high)), font, scale, ink, thick, cv2.LINE_AA)


def draw_emblem(image: np.ndarray, rng: np.random.Generator, centre: tuple[int, int], radius: int, hue: float) -> None:
    """A logo: nested irregular stars and rings, different for every product."""
    for ring in range(int(rng.integers(3, 5))):
        points, reach = int(rng.integers(3, 8)), radius * (1 - 0.27 * ring)
        angles = np.linspace(0, 2 * np.pi, 2 * points, endpoint=False) + rng.uniform(0, np.pi)
        radii = np.where(np.arange(2 * points) % 2, reach, reach * rng.uniform(0.35, 0.85))
        star = np.array(centre) + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        ink = colour(hue + rng.uniform(-60, 60), rng.uniform(0.2, 0.95), float(rng.choice([0.2, 0.55, 0.95])))
        cv2.fillPoly(image, [star.astype(np.int32)], ink, cv2.LINE_AA)
    spot = np.array(centre) + rng.normal(0, radius * 0.3, (6, 2))
    for x, y in spot.astype(int).tolist():
        cv2.circle(
            image,
            (x, y),
            int(rng.integers(3, max(4, radius // 5))),
            colour(hue + 180, 0.7, 0.9),
            -1,
            cv2.LINE_AA,
        )


def draw_barcode(image: np.ndarray, rng: np.random.Generator, box: tuple[int, int, int, int]) -> None:
    left, top, width, height = box
    cv2.rectangle(image, (left, top), (left + width, top + height), (250, 250, 250), -1)
    bars = np.repeat(rng.integers(0, 2, width // 3 + 1), 3)[: width - 8].astype(bool)
    image[top + 4 : top + height - 4, left + 4 : left + 4 + bars.size][:, bars] = (20, 20, 20)


def draw_packaging(seed: int, index: int, *, control: bool = False) -> np.ndarray:
    """The front of product `index`: RGB uint8, long side 440 px. Three neighbours share a design family."""
    kind = Stream.CONTROL if control else Stream.PACKAGING
    rng, family = stream(seed, kind, index), stream(seed, Stream.FAMILY, index // 3 + 100_000 * control)
    aspect = float(family.choice(ASPECTS))
    height = LONG_SIDE_PX if aspect <= 1 else round(LONG_SIDE_PX / aspect)
    width = round(height * aspect)
    hue, font, band_top = (
        family.uniform(0, 360),
        int(family.choice(FONTS)),
        int(family.uniform(0.05, 0.2) * height),
    )
    base = colour(hue, family.uniform(0.25, 0.6), family.uniform(0.45, 0.85))
    ink, paper = colour(hue + 20, 0.8, 0.18), colour(hue + 50, 0.12, 0.98)
    image = np.full((height, width, 3), base, np.uint8)
    lattice = [int(v) for v in family.integers(18, 46, 2)]
    for y in range(0, height, lattice[0]):
        for x in range(0, width, lattice[1]):
            if rng.random() < 0.45:
                shade = colour(hue + rng.uniform(-40, 40), rng.uniform(0.2, 0.65), rng.uniform(0.25, 0.95))
                corner = (x + int(rng.integers(4, lattice[1])), y + int(rng.integers(4, lattice[0])))
                cv2.rectangle(image, (x, y), corner, shade, -1)
    title_height = int(height * 0.17)
    cv2.rectangle(image, (0, band_top), (width, band_top + title_height), paper, -1)
    margin = width // 16
    print_line(image, word(rng, 2).upper(), (margin, band_top + 6, width - 2 * margin, title_height - 10), ink, font)
    subtitle_top = band_top + title_height + 6
    print_line(
        image,
        f"{word(rng, 3)} {word(rng, 2)}",
        (margin, subtitle_top, width - 2 * margin, height // 12),
        paper,
        font,
    )
    centre = (int(width * rng.uniform(0.34, 0.66)), int(height * rng.uniform(0.52, 0.6)))
    draw_emblem(image, rng, centre, int(min(width, height) * 0.23), hue + 140)
    foot = int(height * 0.78)
    cv2.rectangle(image, (margin, foot), (int(width * 0.62), height - margin), paper, -1)
    for row in range(4):
        line = f"{word(rng, 2)} {rng.integers(2, 99)}% {word(rng, 2)}"
        box = (margin + 4, foot + 4 + row * height // 22, int(width * 0.62) - margin - 8, height // 26)
        print_line(image, line, box, ink, cv2.FONT_HERSHEY_SIMPLEX)
    draw_barcode(image, rng, (int(width * 0.66), int(height * 0.84), int(width * 0.28), int(height * 0.11)))
    badge = (int(width * rng.uniform(0.78, 0.84)), int(height * rng.uniform(0.42, 0.72)))
    cv2.circle(image, badge, width // 9, colour(hue + 200, 0.85, 0.95), -1, cv2.LINE_AA)
    half = width // 12
    print_line(
        image,
        f"{rng.integers(10, 99)}",
        (badge[0] - half, badge[1] - half // 2, 2 * half, 2 * half),
        ink,
        font,
    )
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), ink, 5)
    # muted print: in this world strong colour belongs to the two patterns
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, 0.4, grey, 0.6, 0)


def photograph(packaging: np.ndarray, rng: np.random.Generator) -> Photo:
    """One catalogue photo: on white (most), cut out (PNG with alpha), or the packaging from edge to edge."""
    height, width = packaging.shape[:2]
    style = str(rng.choice(["white", "cut out", "edge to edge"], p=[0.6, 0.2, 0.2]))
    if style == "edge to edge":
        return Photo(packaging, corners(0, 0, width, height), ".jpg")
    left, top = (int(v) for v in rng.uniform(0.08, 0.2, 2) * max(height, width))
    full = (height + 2 * top, width + 2 * left)
    inside = (slice(top, top + height), slice(left, left + width))
    if style == "cut out":
        pixels = np.zeros((*full, 4), np.uint8)
        pixels[inside] = np.dstack([packaging, np.full((height, width), 255, np.uint8)])
        return Photo(pixels, corners(left, top, width, height), ".png")
    pixels = np.full((*full, 3), 255, np.uint8)
    pixels[inside] = packaging
    return Photo(pixels, corners(left, top, width, height), ".jpg")


def corners(left: float, top: float, width: float, height: float) -> list[float]:
    """x1,y1,...,x4,y4 clockwise from the top left."""
    right, bottom = left + width, top + height
    return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]
