"""One script made into a video file, and the truth about exactly the frames that are sampled."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from catalog.world.config import GRID, WorldConfig
from catalog.world.encode import quiet_music, write_video
from catalog.world.geometry import Choreography
from catalog.world.packaging import draw_packaging
from catalog.world.patterns import PatternPainter, blend
from catalog.world.scene import MARGIN_PX, Presenter, draw_background, draw_occluder
from catalog.world.script import Stream, VideoScript, draw_script, stream

OCCLUDED_ABOVE = 0.25
SHUTTER = 0.5
BANNER_SHARE, BANNER_FIELDS = 0.12, 5


@dataclass
class SecondTruth:
    """Truth of one sampled frame. Masks are full-size bool (H, W); the product's is its visible outline."""

    product: np.ndarray
    element: np.ndarray
    distractor: np.ndarray
    quad: list[float] | None
    occluded: bool
    weight: float

    @property
    def pe(self) -> float:
        return float((self.element & self.product).mean()) * self.weight

    @property
    def signal(self) -> float:
        return float(self.element.mean()) * self.weight


class Renderer:
    """Draws the frames of one video in order and notes the truth of the sampled ones in `truth`."""

    def __init__(self, script: VideoScript, seed: int, config: WorldConfig):
        self.script, self.seed, self.config = script, seed, config
        self.packaging = None if script.product is None else draw_packaging(seed, script.product)
        aspect = 0.8 if self.packaging is None else self.packaging.shape[1] / self.packaging.shape[0]
        self.stage = Choreography(script, aspect, config)
        if self.packaging is not None:
            shrink = min(1.0, 1.5 * self.stage.size_px / np.sqrt(self.packaging.shape[0] * self.packaging.shape[1]))
            self.packaging = cv2.resize(self.packaging, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        self.samples = set(script.samples(config.fps))
        self.truth: list[SecondTruth] = []

    def frames(self) -> Iterator[np.ndarray]:
        """RGB uint8 (H, W, 3), one after another."""
        look = stream(self.seed, Stream.LOOK, self.script.index)
        bounds = (*self.script.cuts, self.script.frames)
        presenter = Presenter(self.config, look)
        for shot, (first, end) in enumerate(pairwise(bounds)):
            if shot and look.random() < 0.5:
                presenter = Presenter(self.config, look)
            background = draw_background(self.config, look)
            painters = {
                "distractor": PatternPainter(
                    "distractor", self.script.distractor, self.script.distractor.weights[shot]
                ),
                "element": PatternPainter("element", self.script.element, self.script.element.weights[shot]),
            }
            for frame in range(first, end):
                yield self.draw(frame, background, presenter, painters)

    def draw(
        self, index: int, background: np.ndarray, presenter: Presenter, painters: dict[str, PatternPainter]
    ) -> np.ndarray:
        config, script, seconds = self.config, self.script, index / self.config.fps
        x = MARGIN_PX + round(0.6 * MARGIN_PX * np.sin(0.5 * seconds + script.index))
        y = MARGIN_PX + round(0.4 * MARGIN_PX * np.sin(0.37 * seconds))
        frame = background[y : y + config.height, x : x + config.width].copy()
        if config.creator_banner:
            banner = draw_banner(self.seed, script.creator, config.width, round(BANNER_SHARE * config.height))
            frame[: len(banner)] = banner
        shown = self.stage.product_on(index)
        quad = self.stage.product_quad(index)
        presenter.draw(frame, seconds, (quad[3] + 0.1 * (quad[1] - quad[3])) if shown else None)
        sampled = index in self.samples
        product = np.zeros(frame.shape[:2], bool)
        outline, covered = None, 0.0
        if shown:
            product = outline = self.paste_product(frame, quad, index)
            if self.stage.occluded_on(index):
                hidden = draw_occluder(
                    frame, quad, index / script.frames, presenter.skin, arm=script.placement.occluder_is_arm
                )
                product = outline & ~hidden
                covered = 1 - product.sum() / max(1, outline.sum())
        masks = {}
        for kind, painter in painters.items():
            masks[kind] = np.zeros(frame.shape[:2], bool) if sampled else None
            pattern, toward = (script.element, -1) if kind == "element" else (script.distractor, 1)
            for wheel in self.stage.wheels(pattern, index, toward=toward):
                painter.paint(frame, wheel, seconds, outline, masks[kind])
        if sampled:
            fractions = (quad / (config.width, config.height)).ravel().tolist() if product.any() else None
            weight = script.element.weights[script.shot_of(index)]
            distractor = masks["distractor"] & ~masks["element"]
            self.truth.append(
                SecondTruth(product, masks["element"], distractor, fractions, covered > OCCLUDED_ABOVE, weight)
            )
        return frame

    def paste_product(self, frame: np.ndarray, quad: np.ndarray, index: int) -> np.ndarray:
        """Warp the packaging onto `quad`, blurred along its motion; returns its outline, bool (H, W)."""
        assert self.packaging is not None
        height, width = self.packaging.shape[:2]
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
        bounds = np.array([frame.shape[1], frame.shape[0]])
        low = np.clip(np.floor(quad.min(0)) - 6, 0, bounds).astype(int)
        high = np.clip(np.ceil(quad.max(0)) + 6, 0, bounds).astype(int)
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        warp = cv2.getPerspectiveTransform(source, (quad - low).astype(np.float32))
        print_ = cv2.warpPerspective(
            self.packaging, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        alpha = np.zeros(size[::-1], np.uint8)
        shape = np.round((quad - low) * 16).astype(np.int32)
        cv2.fillPoly(alpha, [shape], 255, cv2.LINE_AA, shift=4)
        inside = alpha > 127
        motion = (self.stage.product_centre(index) - self.stage.product_centre(max(index - 1, 0))) * SHUTTER
        if (length := float(np.hypot(*motion))) > 1.2 and index not in self.script.cuts:
            kernel = motion_kernel(motion * min(1.0, 6 / length))
            print_, alpha = cv2.filter2D(print_, -1, kernel), cv2.filter2D(alpha, -1, kernel)
        region = (slice(low[1], high[1]), slice(low[0], high[0]))
        blend(frame[region], print_, alpha.astype(np.float32) / 255)
        outline = np.zeros(frame.shape[:2], bool)
        outline[region] = inside
        return outline


def draw_banner(seed: int, creator: int, width: int, height: int) -> np.ndarray:
    """A row of coloured fields, uint8 (height, width, 3)."""
    fields = stream(seed, Stream.BANNER, creator).integers(0, 256, (1, BANNER_FIELDS, 3), np.uint8)
    return cv2.resize(fields, (width, height), interpolation=cv2.INTER_NEAREST)


def motion_kernel(motion: np.ndarray) -> np.ndarray:
    """A line of the length and direction of `motion` (px), sum 1."""
    side = 2 * int(np.ceil(np.abs(motion).max() / 2)) + 1
    kernel = np.zeros((side, side), np.uint8)
    ends = np.array([-motion, motion]) / 2 + side // 2
    (x0, y0), (x1, y1) = np.round(ends * 256).astype(int).tolist()
    cv2.line(kernel, (x0, y0), (x1, y1), 255, 1, cv2.LINE_AA, 8)
    return kernel.astype(np.float32) / max(1, int(kernel.sum()))


@dataclass(frozen=True)
class VideoTruth:
    """Truth of one video, small enough to travel between processes. Lists and packed masks: one a second."""

    index: int
    pe_true: float
    engagement_signal: float
    product_visible: list[bool]
    product_share: list[float]
    element_share: list[float]
    distractor_share: list[float]
    element_weight: list[float]
    occluded: list[bool]
    product_quads: list[list[float] | None]
    packed_masks: list[tuple[bytes, bytes, bytes]]


def on_grid(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) -> bool (GRID, GRID): the pixel under each cell's centre, so that shares are kept."""
    return cv2.resize(mask.astype(np.uint8), (GRID, GRID), interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


def packed(mask: np.ndarray) -> bytes:
    return np.packbits(on_grid(mask)).tobytes()


def make_video(folder: Path, seed: int, index: int, config: WorldConfig) -> VideoTruth:
    """Render video `index` to folder/videos and return its truth. Needs nothing but its arguments."""
    script = draw_script(config, seed, index)
    renderer = Renderer(script, seed, config)
    sound = quiet_music(script.frames / config.fps, stream(seed, Stream.SOUND, index))
    write_video(folder / "videos" / f"{video_name(index)}.mp4", renderer.frames(), sound, config)
    seconds = renderer.truth
    return VideoTruth(
        index=index,
        pe_true=float(np.mean([second.pe for second in seconds])),
        engagement_signal=float(np.mean([second.signal for second in seconds])),
        product_visible=[bool(second.product.any()) for second in seconds],
        product_share=[float(second.product.mean()) for second in seconds],
        element_share=[float(second.element.mean()) for second in seconds],
        distractor_share=[float(second.distractor.mean()) for second in seconds],
        element_weight=[second.weight for second in seconds],
        occluded=[second.occluded for second in seconds],
        product_quads=[second.quad for second in seconds],
        packed_masks=[
            (packed(second.product), packed(second.element), packed(second.distractor)) for second in seconds
        ],
    )


def video_name(index: int) -> str:
    return f"v{index:06d}"
