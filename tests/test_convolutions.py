"""Cheaper convolutions are the plain ones: outputs and gradients against PyTorch's, for every length of clip."""

import copy

import pytest
import torch
from torch import nn

from tests.test_models import small_model
from training.convolutions import PhasedConv3d, StackedConv3d, with_cheaper_convolutions
from training.models import for_inference
from training.winograd import WinogradConv3d

WIDE = StackedConv3d.MIN_CHANNELS


def frozen(*args: object, **kwargs: object) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(*args, **kwargs, dtype=torch.float64).requires_grad_(False)  # pyright: ignore


def output_and_gradient(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = x.clone().requires_grad_(True)
    y = module(pixels)
    (gradient,) = torch.autograd.grad((y * y.detach().cos()).sum(), pixels)
    return y.detach(), gradient


def assert_same_function(cheaper: nn.Module, direct: nn.Module, x: torch.Tensor) -> None:
    for got, wanted in zip(output_and_gradient(cheaper, x), output_and_gradient(direct, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("time", (1, 3))
@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("size", ((8, 8), (6, 10), (7, 8), (9, 5)))
def test_gradient_by_phases_is_the_transposed_convolution(time: int, bias: bool, size: tuple[int, int]):
    direct = frozen(3, 5, (time, 7, 7), stride=(1, 2, 2), padding=(time // 2, 3, 3), bias=bias)
    torch.manual_seed(1)
    for clips, seconds in ((1, 1), (2, 4)):
        assert_same_function(PhasedConv3d(direct), direct, torch.randn(clips, 3, seconds, *size, dtype=torch.float64))


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("seconds", range(1, 7))
@pytest.mark.parametrize("clips", (1, 2))
def test_frames_with_their_neighbours_channels_are_the_clip(stride: int, seconds: int, clips: int):
    direct = frozen(4, 6, 3, stride=stride, padding=1)
    torch.manual_seed(1)
    assert_same_function(StackedConv3d(direct), direct, torch.randn(clips, 4, seconds, 5, 6, dtype=torch.float64))


@pytest.mark.parametrize(
    ("module", "kind"),
    (
        (nn.Conv3d(3, 4, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3)), PhasedConv3d),
        (nn.Conv3d(3, 4, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3)), PhasedConv3d),
        (nn.Conv3d(3, 4, (3, 7, 7), stride=(1, 2, 2), padding=(1, 2, 2)), None),
        (nn.Conv3d(3, 4, (3, 7, 7), stride=2, padding=(1, 3, 3)), None),
        (nn.Conv3d(WIDE, 4, 3, padding=1, stride=2), StackedConv3d),
        (nn.Conv3d(2 * WIDE, 4 * WIDE, 3, padding=1), StackedConv3d),
        (nn.Conv3d(WIDE, 4, 3, padding=1), WinogradConv3d),
        (nn.Conv3d(WIDE, 4, (1, 3, 3), padding=(0, 1, 1)), None),
        (nn.Conv3d(WIDE, 4, 3, padding=1, stride=2, groups=2), None),
        (nn.Conv3d(WIDE, 4, 3, padding="same", dilation=2), None),
        (nn.Conv3d(4, 4, 3, padding=1, stride=2), None),
        (nn.Conv2d(3, 4, 7, stride=2, padding=3), None),
    ),
)
def test_each_convolution_becomes_the_kind_that_fits_it(module: nn.Module, kind: type | None):
    holder = nn.Sequential(module)
    with_cheaper_convolutions(holder)  # pyright: ignore
    assert type(holder[0]) is (kind or type(module))


@pytest.mark.parametrize(
    ("architecture", "winograd"), [("r3d_18_w16", 13), ("mc3_18", 4), ("r2plus1d_18", 0), ("frame_conv3d", 0)]
)
@pytest.mark.parametrize("lengths", (None, torch.tensor([7, 5, 2])))
def test_network_is_the_same_function_with_the_same_gradient(
    architecture: str, winograd: int, lengths: torch.Tensor | None
):
    """Two convolutions a block, 16, less the 3 strided ones; MC3-18's first stage; none where all are factored."""
    direct = for_inference(small_model(architecture)).double()
    cheaper = with_cheaper_convolutions(copy.deepcopy(direct))
    assert sum(isinstance(m, WinogradConv3d) for m in cheaper.modules()) == winograd
    assert sum(isinstance(m, PhasedConv3d) for m in cheaper.modules()) == (architecture != "frame_conv3d")
    x = torch.rand(1 if lengths is None else 3, 3, 7, 16, 16, dtype=torch.float64)
    results = []
    for model in (direct, cheaper):
        pixels = x.clone().requires_grad_(True)
        y = model(pixels, lengths)
        results.append((y.detach(), *torch.autograd.grad(y.sum(), pixels)))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
