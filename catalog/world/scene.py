"""Background and presenter of one shot, drawn with plain shapes and textures."""

import cv2
import numpy as np

from catalog.world.config import WorldConfig
from catalog.world.geometry import quad_area
from catalog.world.packaging import colour

MARGIN_PX = 24
SKINS = ((244, 208, 180), (224, 172, 130), (186, 128, 88), (122, 80, 54), (255, 220, 196))


def draw_background(config: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    """A textured wall, RGB uint8, MARGIN_PX wider than the frame on every side: room for the camera."""
    height, width = config.height + 2 * MARGIN_PX, config.width + 2 * MARGIN_PX
    hue, saturation, value = rng.uniform(0, 360), rng.uniform(0.03, 0.32), rng.uniform(0.35, 0.95)
    base = np.array(colour(hue, saturation, value), np.float32)
    cloud = cv2.resize(rng.normal(0, 1, (7, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    fall = np.linspace(0.12, -0.18, height, dtype=np.float32)[:, None]
    image = (base * (1 + 0.10 * cloud + fall)[..., None]).clip(0, 255).astype(np.uint8)
    line, style = colour(hue + 30, saturation * 0.8, value * 0.75), int(rng.integers(4))
    step = int(rng.integers(38, 80))
    if style == 0:
        for row, y in enumerate(range(0, height, step // 2)):
            cv2.line(image, (0, y), (width, y), line, 2)
            for x in range((row % 2) * step // 2, width, step):
                cv2.line(image, (x, y), (x, y + step // 2), line, 2)
    elif style == 1:
        for x in range(0, width, step):
            cv2.rectangle(image, (x, 0), (x + step // 2, height), line, -1)
    elif style == 2:
        for x, y in (rng.random((45, 2)) * (width, height)).astype(int).tolist():
            glow = colour(hue + rng.uniform(-60, 60), saturation, min(1.0, value * rng.uniform(0.8, 1.4)))
            cv2.circle(image, (x, y), int(rng.integers(8, 40)), glow, -1, cv2.LINE_AA)
    else:
        draw_shelves(image, rng, hue, saturation, value)
    floor = int(height * rng.uniform(0.8, 0.9))
    cv2.rectangle(image, (0, floor), (width, height), colour(hue + 180, 0.25, value * 0.6), -1)
    grain = rng.integers(-5, 6, (height // 2, width // 2, 1), np.int8).repeat(2, 0).repeat(2, 1)
    return (image[: grain.shape[0], : grain.shape[1]].astype(np.int16) + grain).clip(0, 255).astype(np.uint8)


def draw_shelves(image: np.ndarray, rng: np.random.Generator, hue: float, saturation: float, value: float) -> None:
    height, width = image.shape[:2]
    for y in range(90, height, 130):
        x = 10
        while x < width - 30:
            wide, tall = int(rng.integers(12, 42)), int(rng.integers(40, 95))
            cover = colour(hue + rng.uniform(-90, 90), min(0.6, saturation + 0.15), value * rng.uniform(0.5, 1.0))
            cv2.rectangle(image, (x, y - tall), (x + wide, y), cover, -1)
            cv2.line(image, (x + wide // 2, y - tall + 8), (x + wide // 2, y - 10), colour(hue, 0.1, value), 2)
            x += wide + int(rng.integers(2, 16))
        cv2.rectangle(image, (0, y), (width, y + 9), colour(hue + 20, 0.4, value * 0.55), -1)


class Presenter:
    """A drawn person: head, hair, torso and two arms; walks, sways and holds what it advertises."""

    def __init__(self, config: WorldConfig, rng: np.random.Generator):
        self.config = config
        self.skin = SKINS[int(rng.integers(len(SKINS)))]
        hue = rng.uniform(0, 360)
        self.shirt = colour(hue, rng.uniform(0.1, 0.5), rng.uniform(0.3, 0.9))
        self.stripe = colour(hue + 40, 0.3, rng.uniform(0.3, 0.95))
        self.hair = colour(rng.uniform(10, 45), rng.uniform(0.2, 0.8), rng.uniform(0.08, 0.6))
        self.size = config.height / 640 * rng.uniform(0.88, 1.1)
        self.base_x = config.width * rng.uniform(0.4, 0.6)
        self.walk_px, self.sway_hz = rng.uniform(8, 26), rng.uniform(0.2, 0.5)
        self.long_hair, self.striped = bool(rng.random() < 0.5), bool(rng.random() < 0.6)

    def neck(self, seconds: float) -> tuple[float, float]:
        turn = 2 * np.pi * self.sway_hz * seconds
        x = self.base_x + self.walk_px * np.sin(turn)
        return float(x), float(self.config.height * 0.34 + 4 * np.sin(2 * turn))

    def draw(self, frame: np.ndarray, seconds: float, left_hand: np.ndarray | None) -> None:
        """Paint into `frame`; the left hand reaches for the point `left_hand` (px), else it waves."""
        x, y = self.neck(seconds)
        size, bottom = self.size, self.config.height
        shoulder = 78 * size
        torso = [(x - shoulder, y + 34 * size), (x - 30 * size, y + 8 * size), (x + 30 * size, y + 8 * size)]
        torso += [(x + shoulder, y + 34 * size), (x + 66 * size, bottom), (x - 66 * size, bottom)]
        if self.long_hair:
            cv2.ellipse(
                frame,
                point(x, y - 40 * size),
                point(60 * size, 88 * size),
                0,
                0,
                360,
                self.hair,
                -1,
                cv2.LINE_AA,
            )
        cv2.fillPoly(frame, [np.array(torso).astype(np.int32)], self.shirt, cv2.LINE_AA)
        if self.striped:
            for row in range(3, 16):
                at = y + row * 26 * size
                cv2.line(
                    frame,
                    point(x - 62 * size, at),
                    point(x + 62 * size, at),
                    self.stripe,
                    max(2, round(6 * size)),
                )
        cv2.line(frame, point(x, y - 20 * size), point(x, y + 14 * size), self.skin, round(34 * size), cv2.LINE_AA)
        self.draw_head(frame, x, y - 58 * size, seconds)
        wave = y + (170 + 40 * np.sin(2.3 * seconds)) * size
        self.draw_arm(frame, (x + shoulder, y + 44 * size), np.array([x + 104 * size, wave + 60 * size]))
        target = np.array([x - 96 * size, wave + 70 * size]) if left_hand is None else left_hand
        self.draw_arm(frame, (x - shoulder, y + 44 * size), target)

    def draw_head(self, frame: np.ndarray, x: float, y: float, seconds: float) -> None:
        size = self.size
        cv2.ellipse(frame, point(x, y - 8 * size), point(50 * size, 62 * size), 0, 0, 360, self.hair, -1, cv2.LINE_AA)
        cv2.ellipse(frame, point(x, y + 4 * size), point(43 * size, 54 * size), 0, 0, 360, self.skin, -1, cv2.LINE_AA)
        look = 3 * size * np.sin(1.3 * seconds)
        for side in (-1, 1):
            eye = point(x + side * 17 * size + look, y - 4 * size)
            cv2.circle(frame, eye, round(7 * size), (250, 250, 250), -1, cv2.LINE_AA)
            cv2.circle(frame, eye, max(2, round(3.4 * size)), (30, 24, 24), -1, cv2.LINE_AA)
        mouth = (4 + 7 * abs(np.sin(6 * seconds))) * size
        cv2.ellipse(
            frame,
            point(x + look, y + 28 * size),
            point(14 * size, mouth),
            0,
            0,
            360,
            (160, 50, 60),
            -1,
            cv2.LINE_AA,
        )

    def draw_arm(self, frame: np.ndarray, shoulder: tuple[float, float], hand: np.ndarray) -> None:
        size, (x, y) = self.size, shoulder
        elbow = (
            (x + hand[0]) / 2 + (24 * size if hand[0] > x else -24 * size),
            (y + hand[1]) / 2 + 34 * size,
        )
        cv2.line(frame, point(x, y), point(*elbow), self.shirt, round(36 * size), cv2.LINE_AA)
        cv2.line(frame, point(*elbow), point(*hand), self.skin, round(26 * size), cv2.LINE_AA)
        cv2.circle(frame, point(*hand), round(19 * size), self.skin, -1, cv2.LINE_AA)


def point(x: float, y: float) -> tuple[int, int]:
    return round(float(x)), round(float(y))


def draw_occluder(
    frame: np.ndarray, quad: np.ndarray, progress: float, skin: tuple[int, int, int], *, arm: bool
) -> np.ndarray:
    """Lay an arm (or a mug) over 35-60% of the product; returns where, bool (H, W)."""
    cover = np.zeros(frame.shape[:2], np.uint8)
    centre, size = quad.mean(0), float(np.sqrt(quad_area(quad)))
    if arm:
        swing = 0.15 * size * np.sin(2 * np.pi * progress)
        hand = centre + np.array([0.45 * size, -0.1 * size + swing])
        start = centre + np.array([-1.1 * size, 0.35 * size + swing])
        shapes = [lambda im, ink: cv2.line(im, point(*start), point(*hand), ink, round(0.42 * size), cv2.LINE_8)]
        shapes.append(lambda im, ink: cv2.circle(im, point(*hand), round(0.3 * size), ink, -1))
        ink, edge = skin, tuple(int(v * 0.8) for v in skin)
    else:
        x, y = centre + np.array([0.12 * size * np.sin(2 * np.pi * progress), 0.2 * size])
        box = np.array([[x - 0.36 * size, y - 0.4 * size], [x + 0.36 * size, y - 0.4 * size]])
        box = np.vstack([box, [[x + 0.3 * size, y + 0.5 * size], [x - 0.3 * size, y + 0.5 * size]]]).astype(np.int32)
        shapes = [lambda im, ink: cv2.fillPoly(im, [box], ink)]
        ink, edge = (214, 214, 206), (120, 128, 140)
    for shape in shapes:
        shape(cover, 1)
        shape(frame, ink)
    outlines, _ = cv2.findContours(cover, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(frame, outlines, -1, edge, 3, cv2.LINE_AA)
    return cover.astype(bool)
