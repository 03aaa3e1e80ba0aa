"""The engagement map E: which pixels at which second drive the predicted engagement.

Kernel code: imports neither Ray nor MLflow.
"""

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scoring.attribution import METHODS, Maps, gaussian_blurred, predicted
from scoring.settings import MapConfig, unblurred
from training.convolutions import with_cheaper_convolutions
from training.models import EngagementModel, has_bf16_units, to_input

log = logging.getLogger(__name__)

BF16_MIN_CORRELATION = 0.999
"""Autocast is used only where its maps, meaned over cells, correlate this well with fp32's on the device at hand."""
CELLS = 7
"""a side of the frame; a cell is as large as the smallest product that is found, 2% of the frame"""
CPU_FRAMES_A_BATCH = 32
"""Larger batches leave a CPU's caches and cost more a frame."""
GPU_FRAMES_A_BATCH = 1024
MEMORY_SHARE = 0.8
PROBE_FRAMES = 16
MAX_PADDING = 1.25
OVERLAP = 0.25

Work = Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]
"""clips uint8 (B, S, H, W, 3) and their lengths, where they differ -> results of B rows"""


def engagement_map(model: EngagementModel, clip: np.ndarray, method: str | MapConfig = "hires_cam") -> np.ndarray:
    """E of one clip.

    clip: uint8 (S, H, W, 3) RGB at the model's input size -> float32 (S, H, W), >= 0, unscaled; a frame of one colour
    gets 0. method: a name of ``scoring.attribution.METHODS``, for the map as its authors have it, or all settings. A
    model in training mode is used as at inference and left as it was. Every call readies the model anew; for many
    clips use an ``EngagementMapper``.
    Raises ValueError for a method that does not exist (naming those that do), for a misshapen clip, and for a model
    that cannot be explained (``check_model``).
    """
    config = method if isinstance(method, MapConfig) else unblurred(method)
    training = model.training
    try:
        ((E, _),) = EngagementMapper(model, str(model.mean.device), config, exact=True)([clip])
    finally:
        model.train(training)
    return E


def check_model(model: EngagementModel) -> None:
    """ValueError where weights are no numbers, or where the prediction is the same whatever the model is shown."""
    broken = [name for name, values in model.state_dict().items() if not torch.isfinite(values).all()]
    if broken:
        raise ValueError(f"the model's weights are no numbers in {', '.join(broken[:3])}; train it again")
    clips = _noise(model, 2, 2)
    maps, predictions = METHODS["gradient"](model, clips, None, contextlib.nullcontext(), MapConfig())
    if not maps.any() and predictions[0] == predictions[1]:
        raise ValueError("the model predicts the same whatever it is shown, so there is nothing to explain")


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames start to stop of clip ``clip``."""

    clip: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class EngagementMapper:
    """Maps and predictions of many clips on one device, at the precision that is safe there.

    ``model`` should come through ``training.models.for_inference``; it is taken over: put into eval mode and, on
    CPUs that stay with fp32, given cheaper convolutions. Weights must not change afterwards. config: without one,
    the default method's map unblurred. ``exact``: the model as it is, in its own precision.
    Raises ValueError for a method that does not exist and for a model that cannot be explained (``check_model``).
    """

    def __init__(
        self, model: EngagementModel, device: str = "cpu", config: MapConfig | None = None, exact: bool = False
    ):
        self.config = config or unblurred()
        if self.config.method not in METHODS:
            known = ", ".join(METHODS)
            raise ValueError(f"unknown engagement map method {self.config.method!r}; choose one of {known}")
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        check_model(self.model)
        self.bf16 = not exact and has_bf16_units(self.device) and self._bf16_agrees()
        if self.device.type == "cpu" and not self.bf16 and not exact:
            self.model = with_cheaper_convolutions(self.model)
        self.max_frames = self._frames_that_fit() if self.device.type == "cuda" else CPU_FRAMES_A_BATCH

    def __call__(self, clips: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """uint8 (S_i, H, W, 3) each, of any lengths -> E float32 (S_i, H, W), >= 0, unscaled, and log1p(target).

        What a clip shares a batch with cannot change its result beyond rounding. Raises ValueError for a misshapen
        clip; what torch raises where not even one window fits into memory.
        """
        size = self.model.spec.input_size
        for clip in clips:
            if clip.ndim != 4 or clip.shape[1:] != (size, size, 3) or clip.dtype != np.uint8 or not len(clip):
                raise ValueError(f"clip is {clip.dtype} {clip.shape}, expected uint8 (S, {size}, {size}, 3), S > 0")
        windows = [part for i, clip in enumerate(clips) for part in windows_of(i, len(clip), self.config.window_frames)]
        blended = [Blended(clip.shape[:3]) for clip in clips]
        for window, (E, prediction) in self._each(windows, clips, self._maps):
            blended[window.clip].add(window, E[: len(window)], float(prediction))
        return [(b.finished(), self.model.to_log_engagement(b.prediction)) for b in blended]

    def predict(self, clips: Sequence[np.ndarray]) -> list[float]:
        """The predictions alone, in standard deviations of log1p(target), without a map's cost; clips as for a call."""
        found = [0.0] * len(clips)
        windows = [Window(i, 0, len(clip)) for i, clip in enumerate(clips)]
        for window, (prediction,) in self._each(windows, clips, self._predictions):
            found[window.clip] = float(prediction)
        return found

    def _maps(self, pixels: Tensor, lengths: Tensor | None) -> Maps:
        method = METHODS[self.config.method]
        maps, predictions = method(self.model, pixels, lengths, self._autocast(self.bf16), self.config)
        return finished(maps, pixels, lengths, self.config), predictions

    def _predictions(self, pixels: Tensor, lengths: Tensor | None) -> tuple[Tensor]:
        return (predicted(self.model, to_input(pixels), lengths, self._autocast(self.bf16)),)

    def _each(
        self, windows: list[Window], clips: Sequence[np.ndarray], work: Work
    ) -> Iterator[tuple[Window, tuple[np.ndarray, ...]]]:
        """What work says of each window; while one batch's results are read, the device works on the next."""
        left = collections.deque(batches_of_similar_length(windows, self.max_frames))
        running: collections.deque[tuple[list[Window], tuple[Tensor, ...], torch.Event | None]] = collections.deque()
        while left or running:
            if left:
                batch = left.popleft()
                try:
                    running.append((batch, *self._started([clips[w.clip][w.start : w.stop] for w in batch], work)))
                except RuntimeError as error:
                    if not says_out_of_memory(error) or len(batch) == 1:
                        raise
                    self.max_frames = max(1, len(batch) // 2) * len(batch[-1])
                    log.warning("out of memory at %d frames a batch: going on with %d", len(batch) * len(batch[-1]),
                                self.max_frames)  # fmt: skip
                    left.appendleft(batch)
                    left = collections.deque(batches_of_similar_length([w for b in left for w in b], self.max_frames))
                    continue
            if len(running) > 1 or not left:
                batch, results, done = running.popleft()
                if done is not None:
                    done.synchronize()
                yield from zip(batch, zip(*(result.numpy() for result in results), strict=True), strict=True)

    def _started(self, clips: list[np.ndarray], work: Work) -> tuple[tuple[Tensor, ...], torch.Event | None]:
        """work's results in the host's memory, there once the event has come."""
        with full_fp32():
            results = work(*self._padded(clips))
        if self.device.type == "cpu":
            return results, None
        here = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in results)
        return here, torch.cuda.current_stream(self.device).record_event()

    def _padded(self, clips: list[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, S, H, W, 3) on the device, and the clips' lengths where they differ."""
        longest = max(map(len, clips))
        pinned = self.device.type == "cuda"
        batch = torch.zeros((len(clips), longest, *clips[0].shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        for padded, clip in zip(batch.numpy(), clips, strict=True):
            padded[: len(clip)] = clip
        lengths = None
        if any(len(clip) < longest for clip in clips):
            lengths = torch.tensor([len(clip) for clip in clips], pin_memory=pinned)
            lengths = lengths.to(self.device, non_blocking=True)
        return batch.to(self.device, non_blocking=True), lengths

    def _autocast(self, enabled: bool) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _bf16_agrees(self) -> bool:
        """By what PE asks of maps: how much lies on areas of a product's size, on footage."""
        clips, found, method = _footage(self.model, 4, 4), [], METHODS[self.config.method]
        with full_fp32():
            for bf16 in (False, True):
                maps, _ = method(self.model, clips, None, self._autocast(bf16), self.config)
                found.append(F.adaptive_avg_pool2d(maps, CELLS).flatten())
        correlation = torch.corrcoef(torch.stack(found))[0, 1].item()
        if not correlation >= BF16_MIN_CORRELATION:
            log.warning("bf16 maps correlate %.4f with fp32 on %s: staying with fp32", correlation, self.device)
            return False
        return True

    def _frames_that_fit(self) -> int:
        """Frames a batch that take ``MEMORY_SHARE`` of what the GPU has left, by what one clip takes."""
        clip = np.zeros((PROBE_FRAMES, *[self.model.spec.input_size] * 2, 3), np.uint8)
        self._started([clip], self._maps)
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self._started([clip], self._maps)
        torch.cuda.synchronize(self.device)
        a_frame = (torch.cuda.max_memory_allocated(self.device) - before) / PROBE_FRAMES
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(min(GPU_FRAMES_A_BATCH, max(PROBE_FRAMES, MEMORY_SHARE * free / a_frame)))


class Blended:
    """A clip's map and prediction out of its windows'; in an overlap one fades into the next."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self.weights = np.zeros(shape[0], np.float32)
        self.total: np.ndarray | None = None
        self.parts: list[tuple[slice, np.ndarray, float]] = []

    def add(self, window: Window, E: np.ndarray, prediction: float) -> None:
        if self.total is None:
            self.total = np.zeros(self.shape, np.float32)
        weights = np.ones(len(window), np.float32)
        if len(window) < self.shape[0]:
            frames = np.arange(len(window))
            weights *= np.minimum(np.minimum(frames, frames[::-1]) + 1, max(1, int(OVERLAP * len(window))))
        part = slice(window.start, window.stop)
        self.total[part] += weights[:, None, None] * E
        self.weights[part] += weights
        self.parts.append((part, weights, prediction))

    def finished(self) -> np.ndarray:
        """E, in the memory of the sum: nothing can be added afterwards."""
        assert self.total is not None
        self.total /= self.weights[:, None, None]
        return self.total

    @property
    def prediction(self) -> float:
        """The windows', weighted by their share of the clip."""
        shares = [float((weights / self.weights[part]).sum()) for part, weights, _ in self.parts]
        return float(np.average([prediction for *_, prediction in self.parts], weights=shares))


def finished(maps: Tensor, clips: Tensor, lengths: Tensor | None, config: MapConfig) -> Tensor:
    """Maps (B, S, H, W) of clips uint8 (B, S, H, W, 3), blurred as asked for, then 0 where they lower the prediction
    and where a frame shows nothing."""
    for axis in (2, 3):
        maps = gaussian_blurred(maps, axis, config.smooth_pixels)
    maps = gaussian_blurred(maps, 1, config.smooth_seconds, lengths)
    blank = (clips.amax(dim=(2, 3)) == clips.amin(dim=(2, 3))).all(dim=-1)
    return maps.masked_fill(blank[:, :, None, None], 0).clamp_(min=0)


def windows_of(clip: int, frames: int, at_most: int) -> list[Window]:
    """Windows of equal length that cover a clip; neighbours overlap by ``OVERLAP`` or a little more."""
    if frames <= at_most:
        return [Window(clip, 0, frames)]
    step = at_most - int(OVERLAP * at_most)
    count = 1 + -(-(frames - at_most) // step)
    starts = np.linspace(0, frames - at_most, count).round().astype(int).tolist()
    return [Window(clip, start, start + at_most) for start in starts]


def batches_of_similar_length(windows: Sequence[Window], max_frames: int) -> Iterator[list[Window]]:
    """Cut into batches of at most max_frames padded frames, little of them padding."""
    batch: list[Window] = []
    real = 0
    for window in sorted(windows, key=len):
        padded = (len(batch) + 1) * len(window)
        if batch and (padded > max_frames or padded > MAX_PADDING * (real + len(window))):
            yield batch
            batch, real = [], 0
        batch.append(window)
        real += len(window)
    if batch:
        yield batch


def says_out_of_memory(error: BaseException) -> bool:
    """torch says so of a CPU in a RuntimeError's text alone; an illegal memory access is something else."""
    said = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in str(error).lower() for part in said)


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """fp32 with all of its bits, where GPUs would take TF32 for convolutions and were told to for matrix products."""
    settings = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        yield
    finally:
        for setting, allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = allowed


def _noise(model: EngagementModel, clips: int, frames: int) -> Tensor:
    size, seeded = model.spec.input_size, torch.Generator().manual_seed(0)
    noise = torch.randint(256, (clips, frames, size, size, 3), dtype=torch.uint8, generator=seeded)
    return noise.to(model.mean.device)


def _footage(model: EngagementModel, clips: int, frames: int) -> Tensor:
    """Smooth shapes of which every second shows others a little."""
    size, coarse = model.spec.input_size, 8
    shapes = torch.rand(clips, frames, 3, coarse, coarse, generator=torch.Generator().manual_seed(0))
    seconds = shapes[:, :1] + (shapes - 0.5) / 2
    smooth = F.interpolate(seconds.flatten(0, 1), (size, size), mode="bicubic").clamp(0, 1).mul(255).byte()
    return smooth.unflatten(0, (clips, frames)).permute(0, 1, 3, 4, 2).contiguous().to(model.mean.device)
