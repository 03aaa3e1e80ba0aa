"""E is the prediction's gradient: against finite differences, Captum and answers worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from torch import Tensor, nn

from scoring.saliency import METHODS, EngagementMapper, engagement_map
from training.models import EngagementModel, ModelSpec, for_inference, has_bf16_units, to_input

SIZE = 16


def small_model(seed: int = 0) -> EngagementModel:
    """r3d_18_w16, its batch norms and head as training leaves them; in training mode, as every module."""
    torch.manual_seed(seed)
    model = EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=SIZE, target_mean=6, target_std=2))
    for name, values in model.network.state_dict().items():
        if name.endswith(("running_mean", "1.bias")):
            values.normal_(0, 0.3)
        elif name.endswith(("running_var", "1.weight")) and values.ndim == 1:
            values.uniform_(0.5, 1.5)
        elif name == "fc.weight":
            values.normal_(0, 0.3)
    return model


def noise(seconds: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (seconds, SIZE, SIZE, 3), dtype=np.uint8)


class Weighted(nn.Module):
    """prediction = sum of weights * pixels, so that its gradient is the weights, whatever the clip."""

    def __init__(self, weights: Tensor):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.weights = nn.Parameter(weights)  # (3, S, H, W)
        self.spec = SimpleNamespace(input_size=weights.shape[-1])

    def forward(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        return (clips * self.weights).sum(dim=(1, 2, 3, 4))

    def to_log_engagement(self, standardised: Tensor) -> Tensor:
        return standardised


def test_linear_model_shows_its_largest_weight_of_each_pixel():
    weights = torch.zeros(3, 2, 4, 4)
    weights[:, 0, 1, 2] = torch.tensor([0.5, -2.0, 1.0])
    weights[:, 1, 3, 0] = torch.tensor([0.25, 0.0, 0.0])
    expected = np.zeros((2, 4, 4), np.float32)
    expected[0, 1, 2], expected[1, 3, 0] = 2.0, 0.25
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(engagement_map(Weighted(weights), clip), expected)  # pyright: ignore


def test_map_equals_finite_differences():
    model, clip = small_model().double().eval(), noise(3)[:, :8, :8]
    engagement = engagement_map(model, clip)
    pixels = to_input(torch.from_numpy(clip[None])).double()
    step = 1e-5
    rng = np.random.default_rng(1)
    for second, y, x in rng.integers(0, (3, 8, 8), (4, 3)):
        slopes = []
        for channel in range(3):
            moved = torch.zeros_like(pixels)
            moved[0, channel, second, y, x] = step
            with torch.no_grad():
                slopes.append(float(model(pixels + moved) - model(pixels - moved)) / (2 * step))
        assert engagement[second, y, x] == pytest.approx(max(abs(s) for s in slopes), rel=1e-3, abs=1e-9)


def test_map_equals_captums_saliency():
    model, clip = small_model().eval(), noise(5)
    pixels = to_input(torch.from_numpy(clip[None])).requires_grad_(True)
    expected = Saliency(model).attribute(pixels, abs=True).amax(dim=1)[0].numpy()
    assert expected.max() > 1e-4
    np.testing.assert_allclose(engagement_map(model, clip), expected, rtol=1e-5, atol=1e-5 * expected.max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seconds", [1, 2, 9])
def test_map_has_a_value_of_at_least_zero_for_every_pixel_and_second(method: str, seconds: int):
    engagement = engagement_map(small_model(), noise(seconds), method=method)
    assert engagement.shape == (seconds, SIZE, SIZE)
    assert engagement.dtype == np.float32
    assert (engagement >= 0).all()
    assert engagement.std(axis=(1, 2)).min() > 0


@pytest.mark.parametrize("level", [0, 255])
def test_map_of_a_constant_clip_is_finite(level: int):
    clip = np.full((4, SIZE, SIZE, 3), level, np.uint8)
    assert np.isfinite(engagement_map(small_model(), clip)).all()
    ((engagement, predicted),) = EngagementMapper(for_inference(small_model()))([clip])
    assert np.isfinite(engagement).all()
    assert np.isfinite(predicted)


def test_read_only_and_strided_clips_are_taken():
    clip = noise(4)
    expected = engagement_map(small_model(), clip)
    frozen = np.frombuffer(clip.tobytes(), np.uint8).reshape(clip.shape)
    mirrored = np.ascontiguousarray(clip[:, :, ::-1])[:, :, ::-1]
    for same in (frozen, mirrored):
        np.testing.assert_array_equal(engagement_map(small_model(), same), expected)


def test_unknown_method_names_those_that_exist():
    for ask in (
        lambda: engagement_map(small_model(), noise(1), method="gradcam++"),
        lambda: EngagementMapper(for_inference(small_model()), method="gradcam++"),
    ):
        with pytest.raises(ValueError, match=r"gradcam\+\+") as refused:
            ask()
        assert all(method in str(refused.value) for method in METHODS)


@pytest.mark.parametrize(
    "clip",
    [noise(2)[0], noise(2).astype(np.float32), noise(2).transpose(0, 3, 1, 2), noise(2)[..., :1]],
    ids=["one frame", "floats", "channels first", "grey"],
)
def test_misshapen_clip_is_refused(clip: np.ndarray):
    with pytest.raises(ValueError, match="expected uint8"):
        engagement_map(small_model(), clip)


def test_a_model_in_training_mode_is_used_as_at_inference_and_left_as_it_was():
    model, clip = small_model().train(), noise(3)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    expected = engagement_map(small_model().eval(), clip)
    np.testing.assert_array_equal(engagement_map(model, clip), expected)
    assert model.training
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_mapper_answers_in_order_with_each_clips_own_map_and_prediction():
    clips = [noise(seconds, seed) for seed, seconds in enumerate((5, 2, 9, 2, 1))]
    mapped = EngagementMapper(for_inference(small_model()))(clips)
    assert [engagement.shape for engagement, _ in mapped] == [clip.shape[:3] for clip in clips]
    model = small_model().eval()
    for clip, (engagement, predicted) in zip(clips, mapped, strict=True):
        own = engagement_map(model, clip)
        assert alike(engagement, own) > 0.99  # bf16 where the machine has it
        assert engagement.mean() == pytest.approx(own.mean(), rel=0.05)
        with torch.no_grad():
            standardised = float(model(to_input(torch.from_numpy(clip[None]))))
        assert predicted == pytest.approx(2 * standardised + 6, abs=0.05)
    assert alike(mapped[1][0], mapped[3][0]) < 0.9  # other clips, other maps


def test_videos_of_one_batch_do_not_touch_one_another():
    mapper = EngagementMapper(small_model())
    clip, calm, wild = noise(4), np.zeros((4, SIZE, SIZE, 3), np.uint8), noise(4, seed=7)
    beside_calm, beside_wild = mapper([clip, calm])[0], mapper([clip, wild])[0]
    scale = beside_calm[0].max()
    np.testing.assert_allclose(beside_calm[0], beside_wild[0], rtol=1e-4, atol=1e-4 * scale)
    assert beside_calm[1] == pytest.approx(beside_wild[1], abs=1e-3)


class WrongInBf16(Weighted):
    """Its gradient runs backwards where autocast is on."""

    def forward(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        bf16 = torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
        weights = self.weights.flip(-1) if bf16 else self.weights
        return (clips * weights).sum(dim=(1, 2, 3, 4))


def test_bf16_is_used_only_where_its_maps_agree_with_fp32():
    weights = torch.linspace(0.1, 3, SIZE).expand(3, 8, SIZE, SIZE).clone()
    mapper = EngagementMapper(WrongInBf16(weights))  # pyright: ignore
    assert not mapper.bf16
    ((engagement, _),) = mapper([noise(8)])
    np.testing.assert_array_equal(engagement, weights[0].numpy())
    assert EngagementMapper(Weighted(weights)).bf16 is has_bf16_units(torch.device("cpu"))  # pyright: ignore
