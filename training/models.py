"""The engagement model: a 3D residual network from clips to one number, and its checkpoint files.

Kernel code: imports neither Ray nor MLflow, so it runs on any machine with torch.
"""

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from catalog.errors import Refused

KINETICS_MEAN = (0.43216, 0.394666, 0.37645)
KINETICS_STD = (0.22803, 0.22145, 0.216989)

ARCHITECTURES = {
    "r3d_18": 64,  # the published R3D-18; fits Kinetics-400 checkpoints
    "r3d_18_w16": 16,  # the same network with a quarter of the channels: trials and small catalogues on CPUs
}
"""Selectable networks: name -> channels of the first stage."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What, beside the weights, is needed to use a model: stored in every checkpoint."""

    architecture: str = "r3d_18"
    """one of ARCHITECTURES"""
    input_size: int = 112
    """height and width to which a frame is squashed, pixels; also E's grid"""
    target: str = "shares"
    """the engagement count that the model was trained on"""
    target_mean: float = 0.0
    """mean of log1p(target) over the training split"""
    target_std: float = 1.0
    """standard deviation of log1p(target) over the training split"""
    sample_fps: float = 1.0
    """frames a second of the clips it was trained on"""


class BasicBlock3d(nn.Module):
    """Two 3x3x3 convolutions with a shortcut; parameter names as in torchvision's ``video.resnet``."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm3d(channels_out),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(
            nn.Conv3d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm3d(channels_out),
        )
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels_in, channels_out, 1, stride=stride, bias=False),
                nn.BatchNorm3d(channels_out),
            )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = _masked(self.conv1(x), mask)
        return _masked((self.conv2(x) + shortcut).relu_(), mask)


class ResNet3d18(nn.Module):
    """R3D-18 (Tran et al., "A Closer Look at Spatiotemporal Convolutions", CVPR 2018).

    ``state_dict`` keys are those of torchvision's ``r3d_18``. Fully convolutional in time and space:
    (B, 3, S, H, W) normalised -> (B, outputs) for any S, H, W >= 1.
    """

    def __init__(self, width: int = 64, outputs: int = 1):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.layer1 = nn.Sequential(BasicBlock3d(width, width, 1), BasicBlock3d(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock3d(width, 2 * width, 2), BasicBlock3d(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock3d(2 * width, 4 * width, 2), BasicBlock3d(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock3d(4 * width, 8 * width, 2), BasicBlock3d(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths: (B,) int, the frames of each clip that are real; what follows them is padding and cannot
        change an output. None: all are real."""
        if lengths is None:
            x = self.stem(x)
            for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = layer(x)
            return self.fc(x.mean(dim=(2, 3, 4)))
        x = x * _time_mask(x, lengths)
        x = self.stem(x)
        x = x * _time_mask(x, lengths)
        for number, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            for block in layer:  # pyright: ignore
                if number > 0 and block is layer[0]:
                    lengths = (lengths + 1) // 2
                x = block(x, _time_mask(x, lengths, halved=number > 0 and block is layer[0]))
        return self.fc(x.mean(dim=(3, 4)).sum(dim=2) / lengths[:, None])


def _time_mask(x: Tensor, lengths: Tensor, halved: bool = False) -> Tensor:
    """(B, 1, S, 1, 1), 1 where a frame of x, or of what a stride of 2 makes of it, is real."""
    frames = (x.shape[2] + 1) // 2 if halved else x.shape[2]
    real = torch.arange(frames, device=x.device)[None] < lengths[:, None]
    return real[:, None, :, None, None].to(x.dtype)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class EngagementModel(nn.Module):
    """Clips in, standardised log engagement out; the preprocessing is part of the model.

    ``forward``: float (B, 3, S, H, W), RGB in [0, 1] -> (B,), in standard deviations of log1p(target).
    ``lengths`` (B,) says how many of the S frames of each clip are real, where clips were padded to one length.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec):
        super().__init__()
        if spec.architecture not in ARCHITECTURES:
            raise Refused(f"unknown model {spec.architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
        self.spec = spec
        self.network = ResNet3d18(ARCHITECTURES[spec.architecture])
        self.register_buffer("mean", torch.tensor(KINETICS_MEAN).view(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(KINETICS_STD).view(1, 3, 1, 1, 1), persistent=False)

    def forward(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.network((clips - self.mean) / self.std, lengths).squeeze(1)

    def to_log_engagement(self, standardised: Tensor) -> Tensor:
        """From the network's unit to log1p(target)."""
        return standardised * self.spec.target_std + self.spec.target_mean


def to_input(clips: Tensor) -> Tensor:
    """uint8 (B, S, H, W, 3) RGB -> float32 (B, 3, S, H, W) in [0, 1], a view with channels last in memory."""
    return clips.permute(0, 4, 1, 2, 3).float().div_(255)


def for_inference(model: EngagementModel) -> EngagementModel:
    """The same function, cheaper to differentiate: eval mode, batch norms folded into the convolutions,
    no weight gradients, channels last. Changes ``model`` in place and returns it."""
    model.eval().requires_grad_(False)
    for sequence in [m for m in model.network.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(sequence) - 1):
            conv, norm = sequence[i], sequence[i + 1]
            if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                sequence[i] = fuse_conv_bn_eval(conv, norm)
                sequence[i + 1] = nn.Identity()
    model.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    return model.requires_grad_(False)


def save_checkpoint(model: EngagementModel, file: Path | BinaryIO) -> None:
    """Weights under the network's own key names, beside the spec; tensors and builtins only."""
    torch.save({"spec": dataclasses.asdict(model.spec), "state_dict": model.network.state_dict()}, file)


def load_checkpoint(file: Path | bytes) -> EngagementModel:
    """Read what ``save_checkpoint`` wrote (never runs code from the file).

    Raises Refused where the file is not such a checkpoint or does not fit its own spec.
    """
    name = "the model's weights" if isinstance(file, bytes) else str(file)
    content = _read_tensors(io.BytesIO(file) if isinstance(file, bytes) else file, name)
    if not isinstance(content.get("spec"), dict) or "state_dict" not in content:
        raise Refused(f"{name} is not a checkpoint of this project: it has no spec; give one that jobs.train made")
    known = {field.name for field in dataclasses.fields(ModelSpec)}
    model = EngagementModel(ModelSpec(**{k: v for k, v in content["spec"].items() if k in known}))
    _load_fitting(model.network, content["state_dict"], name)
    return model


def load_pretrained(network: ResNet3d18, file: Path | BinaryIO, name: str | None = None) -> None:
    """Start ``network`` from a checkpoint with torchvision's ``r3d_18`` keys, such as Kinetics-400's.

    The head (``fc.*``) is left as it is. Raises Refused naming the file and missing, unknown and misfitting keys.
    """
    name = name or str(file)
    content = _read_tensors(file, name)
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, dict):
        raise Refused(f"{name} holds no weights by name; expected torchvision's r3d_18 state_dict")
    state = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    head = {k: v for k, v in network.state_dict().items() if k.startswith("fc.")}
    _load_fitting(network, state | head, name)


def _read_tensors(file: Path | BinaryIO, name: str) -> dict[str, Any]:
    if isinstance(file, Path) and not file.is_file():
        raise Refused(f"{name}: there is no such file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(
            f"{name} holds more than tensors (or is no PyTorch file), and code in it is never run; "
            "save the state_dict alone with torch.save(model.state_dict(), file)"
        ) from error
    except Exception as error:  # torch lets through whatever its unpickler meets in a broken file
        raise Refused(f"{name} cannot be read as PyTorch weights (half a file?): {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{name} holds a {type(content).__name__}, expected weights by name")
    return content


def _load_fitting(network: nn.Module, state: dict[str, Tensor], name: str) -> None:
    expected = network.state_dict()
    # num_batches_tracked is bookkeeping of newer PyTorch versions; older checkpoints lack it
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in expected]
    misfit = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", misfit))
        if keys
    ]
    if problems:
        raise Refused(f"{name} does not fit the network; {'; '.join(problems)}")
    network.load_state_dict(state, strict=False)
