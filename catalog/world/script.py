"""What happens in a made-up video, drawn from its seed alone: who, when, what is where; no pixels yet."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from catalog.world.config import WorldConfig

WEIGHT_RANGE = (0.7, 1.3)
PRODUCT_SHARES = (0.17, 0.28)
SHARE_WHEN_ON_MAX = 0.13
"""less than the smallest product's share: a whole pattern has room on it and leaves some print to be read"""
AMOUNT_RANGE = (0.02, 0.105)
AMOUNT_NONE = 0.02


class Stream(IntEnum):
    """Independent random streams: drawing more from one changes none of the others."""

    SCRIPT = 1
    LOOK = 2
    COUNTS = 3
    SOUND = 4
    PACKAGING = 5
    CREATOR = 6
    SALES = 7
    FAMILY = 8
    CONTROL = 9
    BANNER = 10


def stream(seed: int, kind: Stream, index: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, int(kind), index])


@dataclass(frozen=True)
class Window:
    """On for `fraction` of the video, beginning at `start` (both in [0, 1]) and wrapping round its end."""

    start: float
    fraction: float

    def on(self, progress: float) -> bool:
        return (progress - self.start) % 1.0 < self.fraction


@dataclass(frozen=True)
class Pattern:
    """A striking moving pattern (engaging element or distractor): one wheel on the product, one away."""

    amount: float
    """Aim for mean over pixels and seconds of mask * weight."""
    on_product: float
    """Share of its area that rides on the product: 0 is never over it, 1 is always there."""
    weights: tuple[float, ...]
    """Planted weight, one a shot; seen as opacity, saturation and speed."""
    window: Window
    side: int
    """-1: the free wheel is left of the middle, 1: right of it."""
    drift_px: float
    phase: float
    hue_shift: float

    @property
    def share_when_on(self) -> float:
        """Share of the frame it covers while on."""
        return min(self.amount / (float(np.mean(self.weights)) * self.window.fraction), SHARE_WHEN_ON_MAX)


@dataclass(frozen=True)
class Placement:
    """How the product is held: sizes as shares of the frame, angles in radians, motion in px and Hz."""

    share: float
    window: Window
    low: bool
    """True: below the presenter's face, the free wheels are above; False: the other way round."""
    bases: tuple[tuple[float, float], ...]
    """Centre of its path, as fractions of the frame, one a shot."""
    roll: float
    yaw: float
    pitch: float
    sway_px: float
    sway_hz: float
    shake: Window
    occlusion: Window
    occluder_is_arm: bool


@dataclass(frozen=True)
class VideoScript:
    """Everything that decides a video, but for pixels."""

    index: int
    creator: int
    product: int | None
    posted_at_s: float
    """Seconds after the sales panel's first midnight (UTC)."""
    frames: int
    cuts: tuple[int, ...]
    """First frame of every shot."""
    placement: Placement
    element: Pattern
    distractor: Pattern

    def shot_of(self, frame: int) -> int:
        return int(np.searchsorted(self.cuts, frame, side="right")) - 1

    def samples(self, fps: int) -> list[int]:
        """Index of the first frame at or after second k, for every k the video reaches."""
        return list(range(0, self.frames, fps))


def creator_of(index: int) -> int:
    """Six videos a creator, at least four creators; the same whatever the number of videos."""
    return index % 4 if index < 24 else index // 6


def product_of(index: int) -> int:
    """Four products for every five videos: most have one video, some have two."""
    return index - (index + 1) // 5


def draw_pattern(rng: np.random.Generator, shots: int) -> Pattern:
    """Amount and overlap are independent; overlap is none (6%), full (30%) or anything between."""
    low, high = WEIGHT_RANGE
    strength = rng.uniform(low, high)
    weights = tuple(float(w) for w in np.clip(strength + rng.normal(0, 0.12, shots), low, high))
    amount = 0.0 if rng.random() < AMOUNT_NONE else rng.uniform(*AMOUNT_RANGE)
    shortest = amount / (SHARE_WHEN_ON_MAX * float(np.mean(weights)))
    fraction = rng.uniform(min(max(0.5, shortest), 1.0), 1.0)
    overlap = float(rng.choice([0.0, 1.0, rng.random()], p=[0.06, 0.30, 0.64]))
    return Pattern(
        amount=float(amount),
        on_product=overlap,
        weights=weights,
        window=Window(float(rng.random()), float(fraction)),
        side=int(rng.choice([-1, 1])),
        drift_px=float(rng.uniform(4, 14)),
        phase=float(rng.random()),
        hue_shift=float(rng.uniform(-8, 8)),
    )


def draw_placement(rng: np.random.Generator, shots: int) -> Placement:
    kind = rng.choice(["always", "sometimes", "never"], p=[0.27, 0.70, 0.03])
    visible = {"always": 1.0, "sometimes": rng.uniform(0.5, 0.95), "never": 0.0}[str(kind)]
    low = bool(rng.random() < 0.7)
    heights = (0.70, 0.76) if low else (0.24, 0.30)
    bases = [(float(rng.uniform(0.38, 0.62)), float(rng.uniform(*heights))) for _ in range(shots)]
    carried_on = rng.random(shots) < 0.5
    for shot in range(1, shots):
        if carried_on[shot]:
            bases[shot] = bases[shot - 1]
    return Placement(
        share=float(np.exp(rng.uniform(*np.log(PRODUCT_SHARES)))),
        window=Window(float(rng.random()), float(visible)),
        low=low,
        bases=tuple(bases),
        roll=float(np.clip(rng.normal(0, 0.16), -0.4, 0.4)),
        yaw=float(rng.uniform(-0.5, 0.5)),
        pitch=float(rng.uniform(-0.35, 0.35)),
        sway_px=float(rng.uniform(6, 20)),
        sway_hz=float(rng.uniform(0.15, 0.4)),
        shake=Window(float(rng.random()), float(rng.choice([0.0, rng.uniform(0.1, 0.25)]))),
        occlusion=Window(float(rng.random()), float(rng.choice([0.0, rng.uniform(0.1, 0.25)], p=[0.7, 0.3]))),
        occluder_is_arm=bool(rng.random() < 0.5),
    )


def draw_script(config: WorldConfig, seed: int, index: int) -> VideoScript:
    """The script of video `index` of the world `seed`: the same whatever the number of videos."""
    rng = stream(seed, Stream.SCRIPT, index)
    frames = max(2, round(rng.uniform(*config.seconds) * config.fps))
    shots = int(rng.integers(2, 5))
    inner = np.sort(rng.uniform(0.15, 0.85, shots - 1))
    cuts = (0, *(max(1, int(cut * frames)) for cut in inner))
    first_day, last_day = config.sales_days // 6, config.sales_days - config.sales_days // 6
    hour = float(rng.choice([rng.normal(12.5, 2.0), rng.normal(19.5, 2.0)], p=[0.35, 0.65])) % 24
    return VideoScript(
        index=index,
        creator=creator_of(index),
        product=None if rng.random() < 0.025 else product_of(index),
        posted_at_s=float(int(rng.integers(first_day, last_day)) * 86_400 + int(hour * 3600)),
        frames=frames,
        cuts=cuts,
        placement=draw_placement(rng, shots),
        element=draw_pattern(rng, shots),
        distractor=draw_pattern(rng, shots),
    )
