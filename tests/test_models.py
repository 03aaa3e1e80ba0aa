"""The network is torchvision's r3d_18 by name and size, padding changes nothing, bad files are refused."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from catalog.errors import Refused
from training.models import (
    ARCHITECTURES,
    EngagementModel,
    ModelSpec,
    ResNet3d18,
    for_inference,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
    to_input,
)

SPEC = ModelSpec(architecture="r3d_18_w16", input_size=24, target="likes", target_mean=3.5, target_std=2.0)


def small_model(seed: int = 0) -> EngagementModel:
    """r3d_18_w16 in eval mode, its batch norms with statistics and scales as training leaves them."""
    torch.manual_seed(seed)
    model = EngagementModel(SPEC)
    for name, values in model.network.state_dict().items():
        if name.endswith(("running_mean", "1.bias")):
            values.normal_(0, 0.3)
        elif name.endswith(("running_var", "1.weight")) and values.ndim == 1:
            values.uniform_(0.5, 1.5)
        elif name == "fc.weight":
            values.normal_(0, 0.3)
    return model.eval()


def published_shapes(outputs: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision.models.video.r3d_18's state_dict, from its description."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, channels_in: int, channels_out: int, kernel: tuple[int, int, int]) -> None:
        shapes[f"{name}.0.weight"] = (channels_out, channels_in, *kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.1.{part}"] = (channels_out,)
        shapes[f"{name}.1.num_batches_tracked"] = ()

    add("stem", 3, 64, (3, 7, 7))
    before = 64
    for layer, channels in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            entering = before if block == 0 else channels
            add(f"layer{layer}.{block}.conv1", entering, channels, (3, 3, 3))
            add(f"layer{layer}.{block}.conv2", channels, channels, (3, 3, 3))
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
        for name, shape in published_shapes(400).items()
    }
    path = tmp_path_factory.mktemp("weights") / "r3d_18.pth"
    torch.save(state, path)
    return path


def changed(kinetics: Path, folder: Path, drop: str = "", **others: Tensor) -> Path:
    state = torch.load(kinetics, weights_only=True)
    state.pop(drop, None)
    torch.save(state | {name.replace("__", "."): values for name, values in others.items()}, folder / "changed.pth")
    return folder / "changed.pth"


def test_r3d_18_with_a_head_of_400_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in ResNet3d18(64, outputs=400).parameters()) == 33_371_472


def test_state_dict_has_exactly_the_published_names_and_shapes():
    network = ResNet3d18(ARCHITECTURES["r3d_18"], outputs=400)
    assert {name: tuple(v.shape) for name, v in network.state_dict().items()} == published_shapes(400)


def test_kinetics_checkpoint_is_loaded_and_the_networks_own_head_kept(kinetics: Path):
    network = ResNet3d18(64, outputs=1)
    head = {name: network.state_dict()[name].clone() for name in ("fc.weight", "fc.bias")}
    load_pretrained(network, kinetics)
    stored = torch.load(kinetics, weights_only=True)
    for name, values in network.state_dict().items():
        assert torch.equal(values, head[name] if name in head else stored[name]), name


def test_checkpoint_wrapped_by_a_trainer_is_loaded(kinetics: Path, tmp_path: Path):
    state = torch.load(kinetics, weights_only=True)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pth")
    network = ResNet3d18(64)
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
    network = ResNet3d18(64)
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
    network = ResNet3d18(64)
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
        load_pretrained(ResNet3d18(16), path)
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


def test_for_inference_computes_the_same_function_and_gradient():
    torch.manual_seed(3)
    clips = torch.rand(2, 3, 6, 24, 24, requires_grad=True)
    lengths = torch.tensor([6, 4])
    for given in (None, lengths):
        plain, fast = small_model(), for_inference(small_model())
        expected, result = plain(clips, given), fast(clips, given)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        wanted, got = (torch.autograd.grad(y.sum(), clips)[0] for y in (expected, result))
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())


@pytest.mark.parametrize("fold", [False, True])
def test_padded_batch_gives_each_clips_own_prediction_and_gradient(fold: bool):
    model = (for_inference(small_model()) if fold else small_model()).double()
    generator = torch.Generator().manual_seed(1)
    clips = [torch.rand(3, s, 24, 24, generator=generator, dtype=torch.float64) for s in (1, 2, 5, 8, 9, 16)]
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    batch = torch.full((len(clips), 3, 16, 24, 24), 0.8, dtype=torch.float64)  # what pads must not matter
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
def test_any_number_of_frames_is_taken(seconds: int):
    with torch.no_grad():
        prediction = small_model()(torch.rand(1, 3, seconds, 24, 24))
    assert prediction.shape == (1,)
    assert torch.isfinite(prediction).all()


def test_head_averages_over_space_and_time():
    network = ResNet3d18(16).eval()
    torch.nn.init.constant_(network.fc.weight, 1.0)
    seen: list[Tensor] = []
    network.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))  # pyright: ignore
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
