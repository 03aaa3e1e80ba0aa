"""Where product and wheels are at a given frame of a script: the choreography, without pixels."""

import numpy as np
from scipy.optimize import root_scalar

from catalog.world.config import WorldConfig
from catalog.world.patterns import COVERAGE, Wheel
from catalog.world.script import Pattern, VideoScript

FOCAL_OVER_SIZE = 3.5
SMALLEST_WHEEL_PX = 5.0


def tilted_corners(aspect: float, roll: float, yaw: float, pitch: float) -> np.ndarray:
    """Corners (4, 2) of a packaging of width/height `aspect` seen in perspective, scaled to unit area."""
    flat = np.array([[-aspect, -1, 0], [aspect, -1, 0], [aspect, 1, 0], [-aspect, 1, 0]]) / 2
    cos_roll, sin_roll, cos_yaw, sin_yaw = np.cos(roll), np.sin(roll), np.cos(yaw), np.sin(yaw)
    cos_pitch, sin_pitch = np.cos(pitch), np.sin(pitch)
    about_z = np.array([[cos_roll, -sin_roll, 0], [sin_roll, cos_roll, 0], [0, 0, 1]])
    about_y = np.array([[cos_yaw, 0, sin_yaw], [0, 1, 0], [-sin_yaw, 0, cos_yaw]])
    about_x = np.array([[1, 0, 0], [0, cos_pitch, -sin_pitch], [0, sin_pitch, cos_pitch]])
    x, y, z = (flat @ (about_z @ about_y @ about_x).T).T
    seen = np.stack([x, y], 1) * (FOCAL_OVER_SIZE / (FOCAL_OVER_SIZE + z))[:, None]
    return seen / np.sqrt(quad_area(seen))


def quad_area(quad: np.ndarray) -> float:
    x, y = quad.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def radius_within(sides: np.ndarray, area: float) -> float:
    """Radius of a disc in the middle of a rectangle of these sides that covers `area` of it."""
    x = np.linspace(0, sides.min() / 2, 65)

    def excess(radius: float) -> float:
        height = np.minimum(np.sqrt(np.maximum(radius**2 - x**2, 0)), sides.max() / 2)
        return 4 * float(np.trapezoid(height, x)) - area

    if area >= 0.98 * sides.prod():
        return float(sides.max())
    return float(root_scalar(excess, bracket=(0, float(np.hypot(*sides))), xtol=0.1).root)


class Choreography:
    """Positions in px at any frame of one video."""

    def __init__(self, script: VideoScript, aspect: float, config: WorldConfig):
        self.script, self.aspect, self.config = script, aspect, config
        place = script.placement
        self.size_px = float(np.sqrt(place.share * config.width * config.height))
        self.product_px = self.size_px * np.array([np.sqrt(aspect), 1 / np.sqrt(aspect)])
        still = tilted_corners(aspect, place.roll, place.yaw, place.pitch) * self.size_px
        self.reach_px = np.abs(still).max(0) + 4

    def product_centre(self, frame: int) -> np.ndarray:
        script, place, config = self.script, self.script.placement, self.config
        seconds = frame / config.fps
        base = np.array(place.bases[script.shot_of(frame)]) * (config.width, config.height)
        turn = 2 * np.pi * place.sway_hz * seconds
        sway = place.sway_px * np.array([np.sin(turn), 0.5 * np.sin(1.7 * turn + 1)])
        if place.shake.on(frame / script.frames):
            sway = sway + 7 * np.array([np.sin(2 * np.pi * 1.6 * seconds), np.sin(2 * np.pi * 1.3 * seconds)])
        low = np.minimum(self.reach_px, np.array([config.width, config.height]) / 2)
        return np.clip(base + sway, low, np.array([config.width, config.height]) - low)

    def product_quad(self, frame: int) -> np.ndarray:
        """Corners (4, 2) of the packaging, clockwise from its own top left; also while it is absent."""
        place, seconds = self.script.placement, frame / self.config.fps
        turn = 2 * np.pi * place.sway_hz * seconds
        roll, yaw = place.roll + 0.06 * np.sin(turn + 0.5), place.yaw + 0.12 * np.sin(0.8 * turn)
        return self.product_centre(frame) + self.size_px * tilted_corners(self.aspect, roll, yaw, place.pitch)

    def product_on(self, frame: int) -> bool:
        script = self.script
        return script.product is not None and script.placement.window.on(frame / script.frames)

    def occluded_on(self, frame: int) -> bool:
        return self.product_on(frame) and self.script.placement.occlusion.on(frame / self.script.frames)

    def wheels(self, pattern: Pattern, frame: int, *, toward: int) -> list[Wheel]:
        """The pattern's wheels: on the product (shifted `toward` one of its ends) and away from it."""
        if pattern.amount == 0 or not pattern.window.on(frame / self.script.frames):
            return []
        config, seconds = self.config, frame / self.config.fps
        pulse = 1 + 0.07 * np.sin(2 * np.pi * (0.7 * seconds + pattern.phase))
        area = pattern.share_when_on / COVERAGE * config.width * config.height
        riding = pulse * radius_within(self.product_px, area * pattern.on_product)
        free = pulse * np.sqrt(area * (1 - pattern.on_product) / np.pi)
        wheels = []
        if riding >= SMALLEST_WHEEL_PX:
            room = np.clip(0.45 * self.product_px - riding, 0, 0.18 * self.size_px)
            x, y = self.product_centre(frame) + room * (0.4 * pattern.side, toward)
            wheels.append(Wheel(float(x), float(y), float(riding), on_product=True))
        if free >= SMALLEST_WHEEL_PX:
            x, y = self.free_centre(pattern, float(free), seconds)
            wheels.append(Wheel(x, y, float(free)))
        return wheels

    def free_centre(self, pattern: Pattern, radius: float, seconds: float) -> tuple[float, float]:
        """In the half of the frame that the product leaves free, on the pattern's own side."""
        config, place = self.config, self.script.placement
        turn = 2 * np.pi * (0.21 * seconds + pattern.phase)
        spare = max(0.0, config.width / 2 - radius)
        x = config.width / 2 + pattern.side * 0.62 * spare + pattern.drift_px * np.sin(turn)
        sway = place.sway_px / 2 + 7
        if place.low:
            edge = min(y for _, y in place.bases) * config.height - self.reach_px[1] - sway
        else:
            edge = (1 - max(y for _, y in place.bases)) * config.height - self.reach_px[1] - sway
        room = max(0.0, edge - 2 * radius)
        inward = min(0.93 * radius + room * (0.25 + 0.5 * pattern.phase), edge - radius)
        inward = max(inward, 0.8 * radius) + min(4.0, room / 4) * float(np.sin(1.3 * turn))
        return float(x), float(inward if place.low else config.height - inward)
