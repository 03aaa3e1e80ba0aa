"""The networks: video ResNets of 18 layers, and a frame encoder with one 3D convolution.

Each maps float (B, 3, S, H, W), normalised, to (B, outputs) for any S, H, W >= 1 and takes ``lengths`` (B,), the frames
of each clip that are real: what follows them is padding and cannot change an output. Names of parameters are
torchvision's (``models.video``, ``models.resnet18``), so that its checkpoints load. Kernel code: torch alone.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class Factored(nn.Sequential):
    """A 3x3x3 convolution as one in space and one in time, R(2+1)D's, with about as many weights in all."""

    def __init__(self, channels_in: int, channels_out: int, between: int, stride: int = 1):
        super().__init__(
            nn.Conv3d(channels_in, between, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(between),
            nn.ReLU(inplace=True),
            nn.Conv3d(between, channels_out, (3, 1, 1), stride=(stride, 1, 1), padding=(1, 0, 0), bias=False),
        )


def full(channels_in: int, channels_out: int, between: int, stride: int = 1) -> nn.Module:
    return nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def spatial(channels_in: int, channels_out: int, between: int, stride: int = 1) -> nn.Module:
    strides, padding = (1, stride, stride), (0, 1, 1)
    return nn.Conv3d(channels_in, channels_out, (1, 3, 3), stride=strides, padding=padding, bias=False)


Convolution = Callable[..., nn.Module]


class BasicBlock3d(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, convolution: Convolution, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        between = 27 * channels_in * channels_out // (9 * channels_in + 3 * channels_out)
        self.conv1 = nn.Sequential(
            convolution(channels_in, channels_out, between, stride),
            nn.BatchNorm3d(channels_out),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(convolution(channels_out, channels_out, between), nn.BatchNorm3d(channels_out))
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            strides = (1 if convolution is spatial else stride, stride, stride)
            self.downsample = nn.Sequential(
                nn.Conv3d(channels_in, channels_out, 1, stride=strides, bias=False),
                nn.BatchNorm3d(channels_out),
            )

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        shortcut = x if self.downsample is None else self.downsample(x)
        x, lengths = convolved(self.conv1, x, lengths)
        x, lengths = convolved(self.conv2, x, lengths)
        return (x + shortcut).relu_(), lengths


class VideoResNet(nn.Module):
    """R3D-18, MC3-18 and R(2+1)D-18 (Tran et al., "A Closer Look at Spatiotemporal Convolutions", CVPR 2018).

    convolutions: one kind for each of the four stages. width: channels of the first stage.
    """

    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    """of Kinetics-400's pixels, RGB"""
    pretrained_under = ""
    new_parts = ("fc.",)

    def __init__(self, convolutions: tuple[Convolution, ...], width: int = 64, outputs: int = 1):
        super().__init__()
        if convolutions[0] is Factored:
            self.stem = nn.Sequential(
                nn.Conv3d(3, 45, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
                nn.BatchNorm3d(45),
                nn.ReLU(inplace=True),
                nn.Conv3d(45, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
                nn.BatchNorm3d(width),
                nn.ReLU(inplace=True),
            )
        else:
            self.stem = nn.Sequential(
                nn.Conv3d(3, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
                nn.BatchNorm3d(width),
                nn.ReLU(inplace=True),
            )
        first, second, third, fourth = convolutions
        self.layer1 = nn.Sequential(BasicBlock3d(first, width, width, 1), BasicBlock3d(first, width, width, 1))
        self.layer2 = self._halving(second, 2 * width)
        self.layer3 = self._halving(third, 4 * width)
        self.layer4 = self._halving(fourth, 8 * width)
        self.fc = nn.Linear(8 * width, outputs)
        initialise(self)

    @staticmethod
    def _halving(convolution: Convolution, channels: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock3d(convolution, channels // 2, channels, 2), BasicBlock3d(convolution, channels, channels, 1)
        )

    def first_maps(self) -> nn.Module:
        return self.stem[-1]

    def last_maps(self) -> nn.Module:
        return self.layer4[-1]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x, lengths = convolved(self.stem, x, lengths)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, lengths = convolved(layer, x, lengths)
        with torch.autocast(x.device.type, enabled=False):  # of a prediction in bf16 8 bits would be left
            return self.fc(averaged(x.to(self.fc.weight.dtype), lengths))


class BasicBlock2d(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu_()
        return (self.bn2(self.conv2(x)) + shortcut).relu_()


class FrameEncoder(nn.Module):
    """ResNet-18 (He et al., CVPR 2016) without its head: (N, 3, H, W) -> (N, 512, H / 32, W / 32), rounded up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock2d(64, 64, 1), BasicBlock2d(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock2d(64, 128, 2), BasicBlock2d(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock2d(128, 256, 2), BasicBlock2d(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock2d(256, 512, 2), BasicBlock2d(512, 512, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x


class FrameConv3d(nn.Module):
    """A network for images on every frame and one 3D convolution over its maps: the published family.

    As in Yang, Zhang & Zhang (2025) Conv3D(128), global maximum, Dense(256) and a dropout of 0.1; the encoder is
    ResNet-18 where theirs was Xception.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    """of ImageNet's pixels, RGB"""
    pretrained_under = "encoder."
    new_parts = ("head.", "dense.", "fc.")

    def __init__(self, outputs: int = 1):
        super().__init__()
        self.encoder = FrameEncoder()
        self.head = nn.Sequential(
            nn.Conv3d(512, 128, 3, padding=1, bias=False), nn.BatchNorm3d(128), nn.ReLU(inplace=True)
        )
        self.dense = nn.Sequential(nn.Linear(128, 256), nn.ReLU(inplace=True), nn.Dropout(0.1))
        self.fc = nn.Linear(256, outputs)
        initialise(self)

    def first_maps(self) -> nn.Module:
        return self.encoder.relu

    def last_maps(self) -> nn.Module:
        return self.head[-1]

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        frames = self.encoder(x.transpose(1, 2).flatten(0, 1))
        maps = frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        maps, lengths = convolved(self.head, maps, lengths)
        if lengths is not None:
            maps = maps * real_frames(maps, lengths)  # none is below 0, so padding is no maximum
        with torch.autocast(x.device.type, enabled=False):
            return self.fc(self.dense(maps.amax(dim=(2, 3, 4)).to(self.fc.weight.dtype)))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "r3d_18": partial(VideoResNet, (full,) * 4),
    "mc3_18": partial(VideoResNet, (full, spatial, spatial, spatial)),
    "r2plus1d_18": partial(VideoResNet, (Factored,) * 4),
    "frame_conv3d": FrameConv3d,
    "r3d_18_w16": partial(VideoResNet, (full,) * 4, width=16),
}
"""Selectable networks; r3d_18_w16 has a quarter of r3d_18's channels, for trials and small catalogues on CPUs."""


def convolved(module: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A module on frames of which ``lengths`` are real, and how many are real afterwards.

    Before a convolution that looks across time frames behind a clip's end are set to 0, what its own padding would be.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            x, lengths = convolved(part, x, lengths)
        return x, lengths
    if isinstance(module, BasicBlock3d):
        return module(x, lengths)
    if lengths is not None and getattr(module, "kernel_size", (1,))[0] > 1:
        x = x * real_frames(x, lengths)
        lengths = (lengths - 1) // module.stride[0] + 1  # pyright: ignore
    return module(x), lengths


def averaged(x: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, C, S, H, W) -> (B, C), the mean over space and real frames."""
    if lengths is None:
        return x.mean(dim=(2, 3, 4))
    return (x * real_frames(x, lengths)).mean(dim=(3, 4)).sum(dim=2) / lengths[:, None]


def real_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, 1, S, 1, 1), 1 where a frame of x is real, 0 where it is padding."""
    real = torch.arange(x.shape[2], device=x.device)[None] < lengths[:, None]
    return real[:, None, :, None, None].to(x.dtype)


def initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    head: nn.Linear = network.fc  # pyright: ignore
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
