"""3x3x3 convolutions with half the multiplications: Winograd's minimal filtering along time.

Kernel code: imports neither Ray nor MLflow.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# F(4, 3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016): four outputs
# of a filter of three taps from six products, where the direct sum takes twelve
TILE = 4
PRODUCTS = TILE + 2
FILTER_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
MAX_CHANNELS = 256
"""Wider layers are left as they are: their transformed weights are many and, late in the network, their frames few."""
CHUNK_VALUES = 2**22
"""Input values convolved at once: what this makes stays small enough for the allocator to reuse."""


class WinogradConv3d(nn.Module):
    """A frozen ``nn.Conv3d`` of kernel 3, stride 1 and padding 1: the same function, and gradient to its input.

    (B, C, S, H, W) -> (B, O, S, H, W), channels last in memory. Each product is a 2D convolution of whole frames, so
    space keeps the library's fastest kernel. In float32 results differ from the direct sum's by about 1e-5 of the
    largest. Weights get no gradient and must not change afterwards.
    """

    def __init__(self, conv: nn.Conv3d):
        super().__init__()
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        weight = conv.weight.detach()
        self.register_buffer("filters", transformed(weight), persistent=False)
        self.register_buffer("transposed", transformed(weight.flip(2, 3, 4).transpose(0, 1)), persistent=False)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _Convolution.apply(x, self.filters, self.transposed, self.bias)  # pyright: ignore

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return (
            isinstance(module, nn.Conv3d)
            and (module.kernel_size, module.stride, module.padding) == ((3, 3, 3), (1, 1, 1), (1, 1, 1))
            and (module.dilation, module.groups, module.padding_mode) == ((1, 1, 1), 1, "zeros")
            and max(module.in_channels, module.out_channels) <= MAX_CHANNELS
        )


def transformed(weight: Tensor) -> Tensor:
    """(O, C, 3, 3, 3) -> (PRODUCTS, O, C, 3, 3), channels last in memory."""
    transform = torch.tensor(FILTER_TRANSFORM, dtype=torch.float64, device=weight.device)
    filters = torch.einsum("pt,octyx->poyxc", transform, weight.double()).to(weight.dtype)
    return filters.contiguous().permute(0, 1, 4, 2, 3)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return convolved(x, filters, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return convolved(gradients[0], ctx.transposed, None), None, None, None


def convolved(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, S, H, W) and the filters of ``transformed`` -> (B, O, S, H, W), channels last in memory."""
    clips, channels, seconds, height, width = x.shape
    y = torch.empty(
        (clips, filters.shape[1], seconds, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last_3d,
    )
    frames, out = x.permute(0, 2, 3, 4, 1), y.permute(0, 2, 3, 4, 1)
    padding = (0, 0, 0, 0, 0, 0, 1, 1 + -seconds % TILE)
    at_once = max(1, CHUNK_VALUES // (seconds * height * width * channels))
    for first in range(0, clips, at_once):
        chunk = slice(first, first + at_once)
        _convolve_tiles(F.pad(frames[chunk], padding), filters, bias, out[chunk])
    return y


def _convolve_tiles(frames: Tensor, filters: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """frames: (B, tiles * TILE + 2, H, W, C), the first and the last of zeros -> out: (B, S, H, W, O). The paper's
    A'[(G g) * (B'd)] along time alone; sums that two rows of a transform share are taken once."""
    tiles = frames.shape[1] // TILE
    d = [frames[:, i : i + TILE * tiles : TILE] for i in range(PRODUCTS)]
    even, odd = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    even2, odd2 = d[4] - d[2], (d[3] - d[1]).mul_(2)
    inputs = (
        torch.sub(d[4], d[2], alpha=5).add_(d[0], alpha=4),
        even + odd,
        even.sub_(odd),
        even2 + odd2,
        even2.sub_(odd2),
        torch.sub(d[5], d[3], alpha=5).add_(d[1], alpha=4),
    )
    # the second product is in each of the four outputs with weight 1, so the bias rides on it
    biases = (None, bias, None, None, None, None)
    m = [
        F.conv2d(part.flatten(0, 1).permute(0, 3, 1, 2), weight, one_bias, padding=1)
        .permute(0, 2, 3, 1)
        .unflatten(0, part.shape[:2])
        for part, weight, one_bias in zip(inputs, filters, biases, strict=True)
    ]
    near, far = m[1] + m[2], m[3] + m[4]
    near_difference, far_difference = m[1].sub_(m[2]), m[3].sub_(m[4])
    _add(m[0].add_(near), far, 1, out[:, 0::TILE])
    _add(near_difference, far_difference, 2, out[:, 1::TILE])
    _add(near, far, 4, out[:, 2::TILE])
    _add(m[5].add_(near_difference), far_difference, 8, out[:, 3::TILE])


def _add(a: Tensor, b: Tensor, weight: int, out: Tensor) -> None:
    """out = a + weight * b, without what lies behind the clip's end in the last tile."""
    real = out.shape[1]
    torch.add(a[:, :real], b[:, :real], alpha=weight, out=out)
