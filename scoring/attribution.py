"""The methods that make an engagement map: which pixels at which second drive the predicted engagement.

Each takes a model, clips uint8 (B, S, H, W, 3), ``lengths`` (B,) where frames after a clip's end are padding (None
where none are), an autocast context for the network, and a ``MapConfig``; returns maps float32 (B, S, H, W), unscaled,
below 0 where a pixel lowers the prediction (hires_cam alone tells), and predictions float32 (B,). What a clip shares a
batch with does not matter. The pixel unit is the full range (0..1), the prediction's is one standard deviation of
log1p(target); maps of features have the prediction's alone.

Kernel code: imports neither Ray nor MLflow.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoring.settings import MapConfig
from training.models import EngagementModel, to_input

SPECTRUM_PIXELS = 64
"""Frames are reduced to this size for their spectrum (Hou & Zhang 2007)."""
SPECTRUM_BLUR = 2.5

Autocast = contextlib.AbstractContextManager
Maps = tuple[Tensor, Tensor]


def gradient(
    model: EngagementModel, clips: Tensor, lengths: Tensor | None, autocast: Autocast, config: MapConfig
) -> Maps:
    """Vanilla gradient (Simonyan et al. 2014; the published choice of Yang, Zhang & Zhang 2025): max over RGB of
    |d prediction / d pixel|, the whole video jointly."""
    slopes, predictions = slopes_of(model, to_input(clips), lengths, autocast)
    return strongest(slopes), predictions


def smoothgrad(
    model: EngagementModel, clips: Tensor, lengths: Tensor | None, autocast: Autocast, config: MapConfig
) -> Maps:
    """The gradient's mean over ``config.map_samples`` noisy copies (Smilkov et al. 2017), then as ``gradient``."""
    pixels, total = to_input(clips), None
    for noise in seeded_noise(pixels, config.map_samples, config.map_seed):
        slopes, _ = slopes_of(model, pixels + config.map_noise * noise, lengths, autocast)
        total = slopes if total is None else total.add_(slopes)
    assert total is not None
    return strongest(total.div_(config.map_samples)), predicted(model, pixels, lengths, autocast)


def grad_x_input(
    model: EngagementModel, clips: Tensor, lengths: Tensor | None, autocast: Autocast, config: MapConfig
) -> Maps:
    """The gradient times the pixel (Shrikumar et al. 2016), then as ``gradient``."""
    pixels = to_input(clips)
    slopes, predictions = slopes_of(model, pixels, lengths, autocast)
    return strongest(slopes * pixels), predictions


def integrated_gradients(
    model: EngagementModel, clips: Tensor, lengths: Tensor | None, autocast: Autocast, config: MapConfig
) -> Maps:
    """The pixel times the gradient's mean on the way from a black clip to this one (Sundararajan et al. 2017), by
    Gauss-Legendre quadrature at ``config.map_samples`` points; then as ``gradient``. What is black gets nothing."""
    pixels, total = to_input(clips), None
    nodes, weights = np.polynomial.legendre.leggauss(config.map_samples)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        slopes, _ = slopes_of(model, float(node) * pixels, lengths, autocast)
        total = slopes.mul_(float(weight)) if total is None else total.add_(slopes, alpha=float(weight))
    assert total is not None
    return strongest(total * pixels), predicted(model, pixels, lengths, autocast)


def hires_cam(
    model: EngagementModel, clips: Tensor, lengths: Tensor | None, autocast: Autocast, config: MapConfig
) -> Maps:
    """HiResCAM (Draelos & Carin 2020), of the first convolution's maps: what each of its features finds at a place,
    times what more of that adds to the prediction, summed with signs, and brought to the clip's size. Nothing is
    differentiated further back, so it costs less than the gradient. To be blurred before what lowers the prediction is
    cut off: neighbours that cancel out mean nothing."""
    maps, slopes, predictions, _ = slopes_at(model.network.first_maps(), model, to_input(clips), lengths, autocast)  # pyright: ignore[reportCallIssue]
    cams = maps.mul_(slopes).sum(dim=1)
    return torch.stack([enlarged(cam, clips.shape[1:4]) for cam in cams]), predictions


def grad_cam(
    model: EngagementModel, clips: Tensor, lengths: Tensor | None, autocast: Autocast, config: MapConfig
) -> Maps:
    """Grad-CAM (Selvaraju et al. 2017) of the last convolutions' maps over space and time, brought to the clip's size;
    what lowers the prediction is cut off."""
    cams, predictions, frames = class_activations(model, to_input(clips), lengths, autocast)
    size = clips.shape[1:4]
    maps = cams.new_zeros(len(clips), *size)
    for i, (count, length) in enumerate(zip(frames, lengths.tolist() if lengths is not None else [size[0]] * len(clips),
                                            strict=True)):  # fmt: skip
        maps[i, :length] = enlarged(cams[i, :count], (length, *size[1:]))
    return maps, predictions


def spectral_residual(
    model: EngagementModel, clips: Tensor, lengths: Tensor | None, autocast: Autocast, config: MapConfig
) -> Maps:
    """What stands out of each frame's spectrum (Hou & Zhang 2007), the model unasked: the published control."""
    frames = to_input(clips).mean(dim=1).flatten(0, 1)[:, None]
    small = F.interpolate(frames, (SPECTRUM_PIXELS, SPECTRUM_PIXELS), mode="area")[:, 0]
    spectrum = torch.fft.fft2(small)
    amplitude = spectrum.abs().clamp_min(1e-8).log()
    residual = amplitude - F.avg_pool2d(F.pad(amplitude[:, None], (1, 1, 1, 1), "circular"), 3, stride=1)[:, 0]
    striking = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs().square()
    blurred = gaussian_blurred(gaussian_blurred(striking, 1, SPECTRUM_BLUR), 2, SPECTRUM_BLUR)
    maps = F.interpolate(blurred[:, None], clips.shape[2:4], mode="bilinear", align_corners=False)
    return maps.reshape(clips.shape[:4]), predicted(model, to_input(clips), lengths, autocast)


METHODS: dict[str, Callable[..., Maps]] = {
    "hires_cam": hires_cam,
    "gradient": gradient,
    "smoothgrad": smoothgrad,
    "grad_x_input": grad_x_input,
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
    "spectral_residual": spectral_residual,
}


def slopes_of(
    model: EngagementModel, pixels: Tensor, lengths: Tensor | None, autocast: Autocast
) -> tuple[Tensor, Tensor]:
    """d prediction / d pixel, float32 (B, 3, S, H, W), and the predictions, by one backward pass a batch: clips'
    predictions do not depend on one another, so their sum's gradient is each one's own."""
    pixels = pixels.detach().requires_grad_(True)
    with torch.enable_grad(), autocast:
        predictions = model(pixels, lengths)
        (slopes,) = torch.autograd.grad(predictions.float().sum(), pixels)
    return slopes.float(), predictions.detach().float()


def strongest(slopes: Tensor) -> Tensor:
    """(B, 3, S, H, W) -> (B, S, H, W)"""
    return slopes.abs().amax(dim=1)


def predicted(model: EngagementModel, pixels: Tensor, lengths: Tensor | None, autocast: Autocast) -> Tensor:
    with torch.inference_mode(), autocast:
        return model(pixels, lengths).float()


def seeded_noise(pixels: Tensor, samples: int, seed: int) -> Iterator[Tensor]:
    """Standard normal noise (1, 3, S, H, W) a sample, the same for every clip and, on one device, every batch: second
    after second, so that a longer batch begins with a shorter one's."""
    generator = torch.Generator(pixels.device).manual_seed(seed)
    frame = (pixels.shape[1], *pixels.shape[3:])
    for sample in range(samples):
        generator.manual_seed(seed + sample)
        seconds = [torch.randn(frame, generator=generator, device=pixels.device) for _ in range(pixels.shape[2])]
        yield torch.stack(seconds, dim=1)[None]


def class_activations(
    model: EngagementModel, pixels: Tensor, lengths: Tensor | None, autocast: Autocast
) -> tuple[Tensor, Tensor, list[int]]:
    """Grad-CAM on the last maps' own grid, float32 (B, s, h, w), the predictions, and how many of the s are real."""
    maps, slopes, predictions, left = slopes_at(model.network.last_maps(), model, pixels, lengths, autocast)  # pyright: ignore[reportCallIssue]
    frames = left.tolist() if left is not None else [maps.shape[2]] * len(maps)
    # a padded frame has no slope, but must not count either
    real = torch.tensor(frames, device=maps.device)[:, None]
    weights = slopes.mean(dim=(3, 4)).sum(dim=2) / real
    cams = torch.einsum("bc,bcshw->bshw", weights, maps).relu()
    return cams, predictions, frames


def slopes_at(
    module: nn.Module, model: EngagementModel, pixels: Tensor, lengths: Tensor | None, autocast: Autocast
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The maps that a module of the network puts out, d prediction / d map, both float32 (B, C, s, h, w), the
    predictions, and of how many of the s frames each clip's maps are, where they differ."""
    kept: dict[str, Any] = {}

    def cut(module: nn.Module, given: Any, output: Any) -> Any:
        """From here on, and no further back, the network is differentiated."""
        maps, left = output if isinstance(output, tuple) else (output, lengths)
        kept["maps"], kept["lengths"] = maps.detach().requires_grad_(True), left
        return (kept["maps"], left) if isinstance(output, tuple) else kept["maps"]

    handle = module.register_forward_hook(cut)
    try:
        with torch.enable_grad(), autocast:
            predictions = model(pixels.detach(), lengths)
            (slopes,) = torch.autograd.grad(predictions.float().sum(), kept["maps"])
    finally:
        handle.remove()
    maps, slopes = kept["maps"].detach().float(), slopes.float()
    if maps.dim() == 4:  # of frames one by one
        maps, slopes = (x.unflatten(0, (len(pixels), -1)).transpose(1, 2) for x in (maps, slopes))
    return maps, slopes, predictions.detach().float(), kept["lengths"]


def enlarged(cam: Tensor, size: tuple[int, ...]) -> Tensor:
    """(s, h, w) -> size, linearly between where the cells look: with stride t, cell i is centred on pixel i * t."""
    strides = [next(t for k in range(12) if -(-full // (t := 2**k)) == small)
               for small, full in zip(cam.shape, size, strict=True)]  # fmt: skip
    spans = [(small - 1) * t + 1 for small, t in zip(cam.shape, strides, strict=True)]
    between = F.interpolate(cam[None, None], spans, mode="trilinear", align_corners=True)
    missing = [max(0, full - span) for full, span in zip(size, spans, strict=True)]
    padded = F.pad(between, (0, missing[2], 0, missing[1], 0, missing[0]), "replicate")
    return padded[0, 0, : size[0], : size[1], : size[2]]


def gaussian_blurred(x: Tensor, axis: int, sigma: float, lengths: Tensor | None = None) -> Tensor:
    """x blurred along an axis; what lies beyond its ends, or (axis 1) beyond ``lengths``, has no weight."""
    if sigma <= 0:
        return x
    at = torch.arange(x.shape[axis], device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * ((at[:, None] - at) / sigma).square())
    if lengths is None:
        return (x.movedim(axis, -1) @ (kernel / kernel.sum(dim=1, keepdim=True)).T).movedim(-1, axis)
    kernel = kernel * (at < lengths[:, None])[:, None]
    return torch.einsum("bts,bs...->bt...", kernel / kernel.sum(dim=2, keepdim=True), x)
