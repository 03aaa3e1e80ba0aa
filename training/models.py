"""The engagement model: a 3D residual network from clips to one number, and its checkpoint files.

Kernel code: imports neither Ray nor MLflow, so it runs on any machine with torch.
"""

import dataclasses
import io
import itertools
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from catalog.errors import Refused
from training.networks import ARCHITECTURES, Factored


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What, beside the weights, is needed to use a model: stored in every checkpoint."""

    architecture: str = "r3d_18"
    """one of ARCHITECTURES"""
    input_size: int = 112
    """height and width to which a frame is squashed, pixels; also E's grid"""
    target: str = "shares"
    """the engagement count or rate that the model was trained on, see training.targets.label_of"""
    target_mean: float = 0.0
    """mean of log1p(target) over the training split"""
    target_std: float = 1.0
    """standard deviation of log1p(target) over the training split"""
    residualized_on: str = ""
    """the columns whose effect was taken out of log1p(target), with commas"""
    sample_fps: float = 1.0
    """frames a second of the clips it was trained on"""


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
        self.network = ARCHITECTURES[spec.architecture]()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.network, name)).view(1, 3, 1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.network((clips - self.mean) / self.std, lengths).squeeze(1)

    def to_log_engagement(self, standardised: Any) -> Any:
        """From the network's unit to log1p(target)."""
        return standardised * self.spec.target_std + self.spec.target_mean


def to_input(clips: Tensor) -> Tensor:
    """uint8 (B, S, H, W, 3) RGB -> float32 (B, 3, S, H, W) in [0, 1], a view with channels last in memory."""
    return clips.permute(0, 4, 1, 2, 3).float().div_(255)


def for_inference(model: EngagementModel) -> EngagementModel:
    """The same function, cheaper to differentiate: eval mode, batch norms folded into the convolutions,
    no weight gradients, channels last. Changes ``model`` in place and returns it."""
    model.eval().requires_grad_(False)
    for module in list(model.network.modules()):
        # in these networks a batch norm follows the convolution that was registered before it
        for (name, conv), (norm_name, norm) in itertools.pairwise(list(module.named_children())):
            if not isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)):
                continue
            if isinstance(conv, Factored):
                conv[-1] = fuse_conv_bn_eval(conv[-1], norm)  # pyright: ignore
            else:
                setattr(module, name, fuse_conv_bn_eval(conv, norm))  # pyright: ignore
            setattr(module, norm_name, nn.Identity())
    for module in model.network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            last = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
            module.to(memory_format=last)  # pyright: ignore[reportCallIssue]
    return model.requires_grad_(False)


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 is faster there than fp32: emulation, as by CPUs with AVX2 alone, is slower."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # which that question is about
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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


def load_pretrained(network: nn.Module, file: Path | BinaryIO, name: str | None = None) -> None:
    """Start ``network`` from a checkpoint with torchvision's keys: Kinetics-400's of the video networks, ImageNet's
    ``resnet18`` for the frame encoder.

    What such a file does not know, the head above all, is left as it is. Raises Refused naming the file and missing,
    unknown and misfitting keys.
    """
    name = name or str(file)
    content = _read_tensors(file, name)
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, dict):
        raise Refused(f"{name} holds no weights by name; expected torchvision's state_dict of this network")
    state = {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    under: str = network.pretrained_under  # pyright: ignore[reportAssignmentType]
    if not any(k.startswith(under) for k in state):
        state = {under + k: v for k, v in state.items() if not k.startswith("fc.")}
    new = {k: v for k, v in network.state_dict().items() if k.startswith(network.new_parts)}  # pyright: ignore
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    _load_fitting(network, new | state, name)


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
