"""Winograd's convolution is the direct one: outputs and gradients against PyTorch's, for every length of clip."""

import pytest
import torch
from torch import nn

from training import winograd
from training.winograd import TILE, WinogradConv3d, transformed


def conv(channels_in: int, channels_out: int, bias: bool, dtype: torch.dtype = torch.float64) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=bias, dtype=dtype).requires_grad_(False)


def clips(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=dtype).to(memory_format=torch.channels_last_3d)


def test_a_filter_that_only_passes_the_middle_frame_on():
    """Worked out by hand: the middle tap's column of the transform, times a 2D filter of one centre weight."""
    weight = torch.zeros(1, 1, 3, 3, 3)
    weight[0, 0, 1, 1, 1] = 12.0
    centres = [float(tap[0, 0, 1, 1]) for tap in transformed(weight)]
    assert centres == pytest.approx([0, -2, 2, 1, -1, 0])
    passing = nn.Conv3d(1, 1, 3, padding=1, bias=False)
    passing.weight = nn.Parameter(weight / 12, requires_grad=False)
    frames = torch.arange(1.0, 6.0).view(1, 1, 5, 1, 1)
    torch.testing.assert_close(WinogradConv3d(passing)(frames), frames)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("seconds", range(1, 2 * TILE + 2))
def test_outputs_and_gradients_are_the_direct_convolutions(seconds: int, bias: bool):
    direct, x = conv(3, 5, bias), clips(2, 3, seconds, 5, 4)
    outputs, gradients = [], []
    for module in (direct, WinogradConv3d(direct)):
        pixels = x.clone().requires_grad_(True)
        y = module(pixels)
        outputs.append(y.detach())
        (gradient,) = torch.autograd.grad((y * y.detach().cos()).sum(), pixels)
        gradients.append(gradient)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)
    assert outputs[1].is_contiguous(memory_format=torch.channels_last_3d)


def test_clips_convolved_apart_give_what_they_give_together(monkeypatch: pytest.MonkeyPatch):
    module, x = WinogradConv3d(conv(3, 5, True)), clips(7, 3, 6, 5, 4)
    together = module(x)
    for clips_at_once in (1, 3, 7):
        monkeypatch.setattr(winograd, "CHUNK_VALUES", clips_at_once * 6 * 5 * 4 * 3)
        torch.testing.assert_close(module(x), together, rtol=0, atol=1e-12)
    torch.testing.assert_close(module(x.contiguous()), together, rtol=0, atol=1e-12)


def test_float32_loses_a_hundred_thousandth():
    direct, x = conv(64, 64, True, torch.float32), clips(1, 64, 13, 14, 14, dtype=torch.float32)
    exact = direct.double()(x.double())
    error = (WinogradConv3d(direct.float())(x) - exact).abs().max() / exact.abs().max()
    assert float(error) < 2e-5


@pytest.mark.parametrize(
    ("module", "fits"),
    (
        (nn.Conv3d(4, 4, 3, padding=1), True),
        (nn.Conv3d(4, 4, 3, padding=1, stride=2), False),
        (nn.Conv3d(4, 4, 3), False),
        (nn.Conv3d(4, 4, 3, padding=2, dilation=2), False),
        (nn.Conv3d(4, 4, 3, padding=1, groups=2), False),
        (nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"), False),
        (nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)), False),
        (nn.Conv3d(4, winograd.MAX_CHANNELS + 1, 3, padding=1), False),
        (nn.Conv2d(4, 4, 3, padding=1), False),
    ),
)
def test_only_plain_convolutions_are_replaced(module: nn.Module, fits: bool):
    assert WinogradConv3d.fits(module) is fits
