"""The network is torchvision's r3d_18 by name and size, padding changes nothing, bad files are refused."""

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catalog.errors import Refused
from training.models import (
    EngagementModel,
    ModelSpec,
    for_inference,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
    to_input,
)
from training.networks import ARCHITECTURES

KINDS = [name for name in ARCHITECTURES if name != "r3d_18"]
"""r3d_18_w16 is the same code as r3d_18, at a sixteenth of the cost."""
SPEC = ModelSpec(architecture="r3d_18_w16", input_size=24, target="likes", target_mean=3.5, target_std=2.0)


def small_model(architecture: str = "r3d_18_w16") -> EngagementModel:
    """In eval mode, its batch norms with statistics and scales as training leaves them."""
    torch.manual_seed(0)
    model = EngagementModel(dataclasses.replace(SPEC, architecture=architecture))
    for module in model.network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for values in (module.running_mean, module.bias.data):
                values.normal_(0, 0.3)  # pyright: ignore
            for values in (module.running_var, module.weight.data):
                values.uniform_(0.5, 1.5)  # pyright: ignore
    model.network.state_dict()["fc.weight"].normal_(0, 0.3)
    return model.eval()


def published_shapes(architecture: str, outputs: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state_dict of torchvision.models.video's network, from its description."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    def add(name: str, channels_in: int, channels_out: int, kernel: tuple[int, int, int]) -> None:
        shapes[f"{name}.0.weight"] = (channels_out, channels_in, *kernel)
        norm(f"{name}.1", channels_out)

    def factored(name: str, channels_in: int, between: int, channels_out: int) -> None:
        shapes[f"{name}.0.0.weight"] = (between, channels_in, 1, 3, 3)
        norm(f"{name}.0.1", between)
        shapes[f"{name}.0.3.weight"] = (channels_out, between, 3, 1, 1)
        norm(f"{name}.1", channels_out)

    if architecture == "r2plus1d_18":
        add("stem", 3, 45, (1, 7, 7))
        shapes["stem.3.weight"] = (64, 45, 3, 1, 1)
        norm("stem.4", 64)
    else:
        add("stem", 3, 64, (3, 7, 7))
    before = 64
    for layer, channels in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            entering = before if block == 0 else channels
            name = f"layer{layer}.{block}"
            if architecture == "r2plus1d_18":
                # of the whole block, so that its first convolution has as many weights as a full one
                between = entering * channels * 27 // (entering * 9 + 3 * channels)
                factored(f"{name}.conv1", entering, between, channels)
                factored(f"{name}.conv2", channels, between, channels)
            else:
                kernel = (1, 3, 3) if architecture == "mc3_18" and layer > 1 else (3, 3, 3)
                add(f"{name}.conv1", entering, channels, kernel)
                add(f"{name}.conv2", channels, channels, kernel)
        if layer > 1:
            add(f"layer{layer}.0.downsample", before, channels, (1, 1, 1))
        before = channels
    shapes["fc.weight"], shapes["fc.bias"] = (outputs, 512), (outputs,)
    return shapes


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like torchvision's for Kinetics-400: the published names, a head of 400, random values."""
    generator = torch.Generator().manual_seed(4)
    state = {
        name: torch.tensor(7) if shape == () else torch.rand(shape, generator=generator)
        for name, shape in published_shapes("r3d_18", 400).items()
    }
    path = tmp_path_factory.mktemp("weights") / "r3d_18.pth"
    torch.save(state, path)
    return path


def changed(kinetics: Path, folder: Path, drop: str = "", **others: Tensor) -> Path:
    state = torch.load(kinetics, weights_only=True)
    state.pop(drop, None)
    torch.save(state | {name.replace("__", "."): values for name, values in others.items()}, folder / "changed.pth")
    return folder / "changed.pth"


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [("r3d_18", 33_371_472), ("mc3_18", 11_695_440), ("r2plus1d_18", 31_505_325)],
)
def test_state_dict_has_exactly_the_published_names_shapes_and_number_of_parameters(architecture: str, parameters: int):
    network = ARCHITECTURES[architecture](outputs=400)
    assert {name: tuple(v.shape) for name, v in network.state_dict().items()} == published_shapes(architecture, 400)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_frame_encoder_takes_a_checkpoint_for_images_and_keeps_what_is_new(tmp_path: Path):
    """resnet18 has 11,689,512 parameters with its head for ImageNet's 1000 classes."""
    network: Any = ARCHITECTURES["frame_conv3d"]()
    assert sum(p.numel() for p in network.encoder.parameters()) + 512 * 1000 + 1000 == 11_689_512
    state = {name: torch.rand_like(v.float()).to(v.dtype) for name, v in network.encoder.state_dict().items()}
    head = {"fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}
    torch.save(state | head, tmp_path / "resnet18.pth")
    new = {name: v.clone() for name, v in network.state_dict().items() if not name.startswith("encoder.")}
    load_pretrained(network, tmp_path / "resnet18.pth")
    for name, values in network.state_dict().items():
        assert torch.equal(values, new[name] if name in new else state[name.removeprefix("encoder.")]), name
    with pytest.raises(Refused, match=r"missing: encoder\.conv1\.weight"):
        load_pretrained(network, changed(tmp_path / "resnet18.pth", tmp_path, drop="conv1.weight"))


def test_kinetics_checkpoint_is_loaded_and_the_networks_own_head_kept(kinetics: Path):
    network = ARCHITECTURES["r3d_18"]()
    head = {name: network.state_dict()[name].clone() for name in ("fc.weight", "fc.bias")}
    load_pretrained(network, kinetics)
    stored = torch.load(kinetics, weights_only=True)
    for name, values in network.state_dict().items():
        assert torch.equal(values, head[name] if name in head else stored[name]), name


def test_checkpoint_wrapped_by_a_trainer_is_loaded(kinetics: Path, tmp_path: Path):
    state = torch.load(kinetics, weights_only=True)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pth")
    network = ARCHITECTURES["r3d_18"]()
    load_pretrained(network, tmp_path / "wrapped.pth")
    assert torch.equal(network.state_dict()["stem.0.weight"], state["stem.0.weight"])


def test_missing_unknown_and_misfitting_keys_are_named(kinetics: Path, tmp_path: Path):
    path = changed(
        kinetics,
        tmp_path,
        drop="layer3.1.conv2.0.weight",
        layer9__0__weight=torch.zeros(2),
        stem__0__weight=torch.zeros(45, 3, 1, 7, 7),
    )
    network = ARCHITECTURES["r3d_18"]()
    before = {name: values.clone() for name, values in network.state_dict().items()}
    with pytest.raises(Refused) as refused:
        load_pretrained(network, path)
    message = str(refused.value)
    assert str(path) in message
    assert "missing: layer3.1.conv2.0.weight" in message
    assert "unknown: layer9.0.weight" in message
    assert "stem.0.weight is (45, 3, 1, 7, 7), expected (64, 3, 3, 7, 7)" in message
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


def test_checkpoint_of_older_pytorch_without_batch_counters_is_loaded(kinetics: Path, tmp_path: Path):
    state = torch.load(kinetics, weights_only=True)
    kept = {name: values for name, values in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "old.pth")
    network = ARCHITECTURES["r3d_18"]()
    load_pretrained(network, tmp_path / "old.pth")
    assert torch.equal(network.state_dict()["layer4.1.conv2.1.bias"], state["layer4.1.conv2.1.bias"])


class Burglar:
    """Pickles into an instruction to make a file."""

    def __init__(self, loot: Path):
        self.loot = loot

    def __reduce__(self):
        return Path.touch, (self.loot,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, plain_pickle: bool):
    loot, path = tmp_path / "loot", tmp_path / "trap.pth"
    if plain_pickle:
        path.write_bytes(pickle.dumps(Burglar(loot), protocol=2))
    else:
        torch.save({"state_dict": {"stem.0.weight": Burglar(loot)}, "spec": {}}, path)
    with pytest.raises(Refused, match=r"never run.*state_dict"):
        load_pretrained(ARCHITECTURES["r3d_18_w16"](), path)
    with pytest.raises(Refused):
        load_checkpoint(path)
    assert not loot.exists()
    pickle.loads(path.read_bytes()) if plain_pickle else torch.load(path, weights_only=False)
    assert loot.exists()  # the trap does work


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_half_a_checkpoint_is_refused(tmp_path: Path, share: float):
    whole = io.BytesIO()
    save_checkpoint(small_model(), whole)
    half = whole.getvalue()[: int(share * len(whole.getvalue()))]
    (tmp_path / "half.pt").write_bytes(half)
    with pytest.raises(Refused, match=r"half\.pt"):
        load_checkpoint(tmp_path / "half.pt")
    with pytest.raises(Refused, match="the model's weights"):
        load_checkpoint(half)


def test_text_a_missing_file_and_weights_without_a_spec_are_refused(tmp_path: Path):
    (tmp_path / "notes.pt").write_text("these are no weights\n")
    with pytest.raises(Refused, match=r"notes\.pt"):
        load_checkpoint(tmp_path / "notes.pt")
    with pytest.raises(Refused, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")
    torch.save(small_model().network.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(Refused, match="no spec"):
        load_checkpoint(tmp_path / "bare.pt")
    with pytest.raises(Refused, match="r3d_18_w16"):
        EngagementModel(ModelSpec(architecture="r3d_19"))


def test_a_checkpoint_that_does_not_fit_its_spec_is_refused(tmp_path: Path):
    state = small_model().network.state_dict()
    torch.save({"spec": {"architecture": "r3d_18"}, "state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(Refused, match=r"stem\.0\.weight is \(16, 3, 3, 7, 7\), expected \(64, 3, 3, 7, 7\)"):
        load_checkpoint(tmp_path / "other.pt")


def test_saved_and_loaded_model_has_the_same_spec_and_outputs(tmp_path: Path):
    model = small_model()
    save_checkpoint(model, tmp_path / "model.pt")
    clips = torch.rand(2, 3, 5, 24, 24)
    with torch.no_grad():
        expected = model(clips)
        for source in (tmp_path / "model.pt", (tmp_path / "model.pt").read_bytes()):
            again = load_checkpoint(source).eval()
            assert again.spec == SPEC
            assert torch.equal(again(clips), expected)


@pytest.mark.parametrize("architecture", KINDS)
def test_for_inference_computes_the_same_function_and_gradient(architecture: str):
    torch.manual_seed(3)
    clips = torch.rand(2, 3, 6, 24, 24, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([6, 4])
    plain, fast = small_model(architecture).double(), for_inference(small_model(architecture).double())
    for given in (None, lengths):
        expected, result = plain(clips, given), fast(clips, given)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
        wanted, got = (torch.autograd.grad(y.sum(), clips)[0] for y in (expected, result))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9 * float(wanted.abs().max()))
    assert not any(isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("architecture", KINDS)
def test_padded_batch_gives_each_clips_own_prediction_and_gradient(architecture: str, fold: bool):
    model = (for_inference(small_model(architecture)) if fold else small_model(architecture)).double()
    generator = torch.Generator().manual_seed(1)
    clips = [torch.rand(3, s, 24, 24, generator=generator, dtype=torch.float64) for s in (1, 2, 5, 8, 9)]
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    batch = torch.full((len(clips), 3, 9, 24, 24), 0.8, dtype=torch.float64)  # what pads must not matter
    for padded, clip in zip(batch, clips, strict=True):
        padded[:, : clip.shape[1]] = clip
    batch.requires_grad_(True)
    predictions = model(batch, lengths)
    (gradient,) = torch.autograd.grad(predictions.sum(), batch)
    assert predictions.std() > 1e-3
    for i, clip in enumerate(clips):
        alone = clip[None].clone().requires_grad_(True)
        expected = model(alone)
        (wanted,) = torch.autograd.grad(expected.sum(), alone)
        assert abs(predictions[i].item() - expected.item()) < 1e-9
        assert float((gradient[i, :, : clip.shape[1]] - wanted[0]).abs().max()) < 1e-9
        assert float(wanted.abs().max()) > 1e-6
        assert not gradient[i, :, clip.shape[1] :].any()


@pytest.mark.parametrize("seconds", [1, 2, 3, 7, 16, 60])
@pytest.mark.parametrize("architecture", KINDS)
def test_any_number_of_frames_is_taken(architecture: str, seconds: int):
    with torch.no_grad():
        prediction = small_model(architecture)(torch.rand(1, 3, seconds, 24, 24))
    assert prediction.shape == (1,)
    assert torch.isfinite(prediction).all()


def test_head_averages_over_space_and_time():
    network: Any = ARCHITECTURES["r3d_18_w16"]().eval()
    torch.nn.init.constant_(network.fc.weight, 1.0)
    seen: list[Tensor] = []
    network.layer4[1].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        output = network(torch.rand(1, 3, 9, 40, 24))
    assert seen[0].shape == (1, 128, 2, 3, 2)  # 9 -> 5 -> 3 -> 2 seconds; 40 x 24 -> 3 x 2 cells
    torch.testing.assert_close(output[0, 0], seen[0].mean(dim=(2, 3, 4)).sum())


def test_pixels_are_scaled_to_one_and_put_channels_first():
    clips = torch.zeros(1, 2, 4, 5, 3, dtype=torch.uint8)
    clips[0, 1, 2, 3] = torch.tensor([255, 51, 0])
    pixels = to_input(clips)
    assert pixels.shape == (1, 3, 2, 4, 5)
    assert pixels[0, :, 1, 2, 3].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert float(pixels.sum()) == pytest.approx(1.2)


def test_prediction_is_turned_back_into_log_engagement():
    assert small_model().to_log_engagement(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [1.5, 3.5, 7.5]
