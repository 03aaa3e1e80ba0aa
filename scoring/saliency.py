"""The engagement map E: which pixels at which second drive the predicted engagement.

Kernel code: imports neither Ray nor MLflow.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from training.models import EngagementModel, has_bf16_units, to_input
from training.winograd import with_winograd

log = logging.getLogger(__name__)

BF16_MIN_CORRELATION = 0.999
"""Autocast is used only where its map correlates this well with fp32's on the device at hand."""


def engagement_map(model: EngagementModel, clip: np.ndarray, method: str = "gradient") -> np.ndarray:
    """E of one clip.

    clip: uint8 (S, H, W, 3) RGB at the model's input size -> float32 (S, H, W), >= 0, unscaled. A model in
    training mode is used as at inference and left as it was.
    Raises ValueError for a method that does not exist (naming those that do) and for a misshapen clip.
    """
    if method not in METHODS:
        raise ValueError(f"unknown engagement map method {method!r}; choose one of {', '.join(METHODS)}")
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
        raise ValueError(f"clip is {clip.dtype} {clip.shape}, expected uint8 (S, H, W, 3)")
    batch = torch.from_numpy(np.array(clip[None])).to(model.mean.device)
    training = model.training
    model.eval()
    try:
        maps, _ = METHODS[method](model, batch, None, contextlib.nullcontext())
    finally:
        model.train(training)
    return maps[0].cpu().numpy()


def gradient_maps(
    model: EngagementModel,
    clips: Tensor,
    lengths: Tensor | None,
    autocast: contextlib.AbstractContextManager,
) -> tuple[Tensor, Tensor]:
    """Vanilla gradient (Simonyan et al. 2014; the published choice of Yang, Zhang & Zhang 2025).

    E = max over RGB of |d prediction / d pixel|, the whole video jointly, one backward pass a batch: the
    predictions of different clips do not depend on one another, so their sum's gradient is each one's own.

    clips: uint8 (B, S, H, W, 3), the frames after ``lengths`` (B,) are padding -> maps float32 (B, S, H, W),
    predictions float32 (B,). The pixel unit is the full range (0..1), the prediction's is one standard
    deviation of log1p(target).
    """
    pixels = to_input(clips).requires_grad_(True)
    with torch.enable_grad(), autocast:
        predictions = model(pixels, lengths)
        (gradient,) = torch.autograd.grad(predictions.float().sum(), pixels)
    return gradient.float().abs().amax(dim=1), predictions.detach().float()


METHODS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"gradient": gradient_maps}


class EngagementMapper:
    """Maps and predictions of many clips on one device, at the precision that is safe there.

    ``model`` should come through ``training.models.for_inference``; it is taken over: put into eval mode and, on
    CPUs that stay with fp32, given cheaper convolutions. Weights must not change afterwards.
    """

    def __init__(self, model: EngagementModel, device: str = "cpu", method: str = "gradient"):
        if method not in METHODS:
            raise ValueError(f"unknown engagement map method {method!r}; choose one of {', '.join(METHODS)}")
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.method = METHODS[method]
        self.bf16 = has_bf16_units(self.device) and self._bf16_agrees()
        if self.device.type == "cpu" and not self.bf16:
            self.model = with_winograd(self.model)

    def __call__(self, clips: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """uint8 (S_i, H, W, 3) each -> per clip E float32 (S_i, H, W), >= 0, unscaled, and log1p(target).

        Clips of different lengths share a batch: what a clip is padded with cannot change its result.
        """
        lengths = torch.tensor([len(clip) for clip in clips])
        longest = int(lengths.max())
        batch = np.zeros((len(clips), longest, *clips[0].shape[1:]), np.uint8)
        for padded, clip in zip(batch, clips, strict=True):
            padded[: len(clip)] = clip
        uneven = lengths.to(self.device) if int(lengths.min()) < longest else None
        pixels = torch.from_numpy(batch).to(self.device)
        maps, predictions = self.method(self.model, pixels, uneven, self._autocast(self.bf16))
        engagement = self.model.to_log_engagement(predictions).tolist()
        return [
            (E[: len(clip)].copy(), value) for E, clip, value in zip(maps.cpu().numpy(), clips, engagement, strict=True)
        ]

    def _autocast(self, enabled: bool) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _bf16_agrees(self) -> bool:
        size = self.model.spec.input_size
        noise = torch.Generator().manual_seed(0)
        clip = torch.randint(0, 256, (2, 8, size, size, 3), dtype=torch.uint8, generator=noise).to(self.device)
        exact, _ = self.method(self.model, clip, None, self._autocast(False))
        fast, _ = self.method(self.model, clip, None, self._autocast(True))
        correlation = torch.corrcoef(torch.stack([exact.flatten(), fast.flatten()]))[0, 1].item()
        if not correlation >= BF16_MIN_CORRELATION:
            log.warning("bf16 maps correlate %.4f with fp32 on %s: staying with fp32", correlation, self.device)
            return False
        return True
