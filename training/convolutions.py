"""Frozen 3D convolutions whose outputs and input gradients cost a CPU less than PyTorch's own.

Kernel code: imports neither Ray nor MLflow.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models import EngagementModel
from training.winograd import WinogradConv3d


def with_cheaper_convolutions(model: EngagementModel) -> EngagementModel:
    """Replace every convolution that one of the cheaper kinds fits, in place; weights get no gradient from then on."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            for kind in (WinogradConv3d, PhasedConv3d, StackedConv3d):
                if kind.fits(child):
                    setattr(module, name, kind(child))  # pyright: ignore[reportArgumentType]
                    break
    return model


class PhasedConv3d(nn.Module):
    """A convolution of stride 2 in space whose input gradient is one plain convolution.

    (B, C, S, H, W) -> (B, O, S, H / 2, W / 2) for even H and W; others go PyTorch's way. An input pixel (2a + f,
    2b + g) meets weights of one parity only, so the four phases (f, g) of the gradient are 4 C channels of one
    convolution of the output's gradient, at its size (sub-pixel convolution; Shi et al., CVPR 2016).
    """

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        weight = conv.weight.detach()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("phases", by_phase(weight), persistent=False)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            return F.conv3d(x, self.weight, self.bias, self.stride, self.padding)  # pyright: ignore
        return _Phased.apply(x, self.weight, self.phases, self.bias)  # pyright: ignore

    @staticmethod
    def fits(module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv3d) or not is_plain(module):
            return False
        return module.stride == (1, 2, 2) and module.kernel_size[1:] == (7, 7)


def by_phase(weight: Tensor) -> Tensor:
    """(O, C, T, 7, 7) -> (4 C, O, T, 4, 4): the filters that make each phase of the input's gradient.

    Input row 2a + f is under tap u of output row a + (f + 3 - u) / 2, wherever that is whole: rows a - 1 to a + 2.
    """
    outputs, channels, time, *_ = weight.shape
    phases = weight.new_zeros(channels, 2, 2, outputs, time, 4, 4)
    flipped = weight.flip(2).transpose(0, 1)
    taps = [(f, u, (f + 3 - u) // 2 + 1) for f in range(2) for u in range(7) if (f + 3 - u) % 2 == 0]
    for f, u, row in taps:
        for g, v, column in taps:
            phases[:, f, g, :, :, row, column] = flipped[..., u, v]
    return phases.flatten(0, 2).contiguous(memory_format=torch.channels_last_3d)


class _Phased(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, phases: Tensor, bias: Tensor | None) -> Tensor:
        ctx.phases = phases
        time = weight.shape[2] // 2
        return F.conv3d(x, weight, bias, (1, 2, 2), (time, 3, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        time = ctx.phases.shape[2] // 2
        phases = F.conv3d(gradients[0], ctx.phases, padding=(time, 2, 2))[..., 1:, 1:]
        clips, _, seconds, rows, columns = phases.shape
        apart = phases.unflatten(1, (-1, 2, 2)).permute(0, 1, 4, 5, 2, 6, 3)
        return apart.reshape(clips, -1, seconds, 2 * rows, 2 * columns), None, None, None


class StackedConv3d(nn.Module):
    """A wide convolution that takes a single clip as frames which carry their neighbours' channels.

    (B, C, S, H, W) -> (B, O, S', H', W'). PyTorch takes a slow path for one small clip in 3D and copies the weights in
    every call; one 2D convolution of its frames does the same sums. Several clips at once are convolved in 3D: there
    the library skips the padding that stacking would multiply. Both need their own weights.
    """

    MIN_CHANNELS = 128

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        weight = conv.weight.detach()
        stacked = weight.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("stacked", stacked, persistent=False)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return F.conv3d(x, self.weight, self.bias, self.stride, self.padding)  # pyright: ignore
        (taps, *_), (step, *strides) = self.kernel_size, self.stride
        beside, *padding = (size // 2 for size in self.kernel_size)
        frames = F.pad(x[0].permute(1, 0, 2, 3), (0, 0, 0, 0, 0, 0, beside, beside))
        last = len(frames) - taps + 1
        stacked = torch.cat([frames[i : i + last : step] for i in range(taps)], dim=1)
        y = F.conv2d(stacked, self.stacked, self.bias, strides, padding)  # pyright: ignore
        return y.transpose(0, 1)[None]

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        return (
            isinstance(module, nn.Conv3d)
            and is_plain(module)
            and module.kernel_size == (3, 3, 3)
            and module.in_channels >= cls.MIN_CHANNELS
        )


def is_plain(conv: nn.Conv3d) -> bool:
    """Odd kernel, as much padding as keeps the size at stride 1, zeros; no dilation, no groups."""
    same = tuple(size // 2 for size in conv.kernel_size)
    odd = all(size % 2 for size in conv.kernel_size)
    return odd and (conv.padding, conv.dilation, conv.groups, conv.padding_mode) == (same, (1, 1, 1), 1, "zeros")
