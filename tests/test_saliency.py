"""E is what drives the prediction: against finite differences, Captum and answers worked out by hand."""

import itertools
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, LayerGradientXActivation, Saliency
from torch import Tensor, nn

from scoring.attribution import METHODS, class_activations, enlarged, gaussian_blurred, seeded_noise
from scoring.attribution import predicted as predicted_alone
from scoring.saliency import (
    GPU_FRAMES_A_BATCH,
    PROBE_FRAMES,
    EngagementMapper,
    engagement_map,
    says_out_of_memory,
    windows_of,
)
from scoring.settings import MapConfig, unblurred
from training.models import EngagementModel, ModelSpec, for_inference, has_bf16_units, to_input

SIZE = 16
PUBLISHED = unblurred("gradient")


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
        return (clips * self.weights[:, : clips.shape[2]]).sum(dim=(1, 2, 3, 4))

    def to_log_engagement(self, standardised: Tensor) -> Tensor:
        return standardised


def test_linear_model_shows_its_largest_weight_of_each_pixel():
    weights = torch.zeros(3, 2, 4, 4)
    weights[:, 0, 1, 2] = torch.tensor([0.5, -2.0, 1.0])
    weights[:, 1, 3, 0] = torch.tensor([0.25, 0.0, 0.0])
    expected = np.zeros((2, 4, 4), np.float32)
    expected[0, 1, 2], expected[1, 3, 0] = 2.0, 0.25
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(engagement_map(Weighted(weights), clip, "gradient"), expected)  # pyright: ignore


def test_map_equals_finite_differences():
    model, clip = small_model().double().eval(), noise(3)
    engagement = engagement_map(model, clip, "gradient")
    pixels = to_input(torch.from_numpy(clip[None])).double()
    step = 1e-5
    rng = np.random.default_rng(1)
    for second, y, x in rng.integers(0, (3, SIZE, SIZE), (4, 3)):
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
    np.testing.assert_allclose(engagement_map(model, clip, "gradient"), expected, rtol=1e-5, atol=1e-5 * expected.max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seconds", [1, 2, 9])
def test_map_has_a_value_of_at_least_zero_for_every_pixel_and_second(method: str, seconds: int):
    engagement = engagement_map(small_model(), noise(seconds), method)
    assert engagement.shape == (seconds, SIZE, SIZE)
    assert engagement.dtype == np.float32
    assert (engagement >= 0).all()
    if method != "grad_cam":  # which has one value a second on so small a clip
        assert engagement.std(axis=(1, 2)).min() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0, 255])
def test_a_frame_of_one_colour_gets_nothing(level: int, method: str):
    clip = noise(4)
    clip[1:3] = level
    engagement = engagement_map(small_model(), clip, MapConfig(method, smooth_seconds=1.0, smooth_pixels=1.0))
    assert not engagement[1:3].any()
    assert engagement[[0, 3]].any()
    ((engagement, predicted),) = EngagementMapper(for_inference(small_model()), config=unblurred(method))(
        [np.full_like(clip, level)]
    )
    assert not engagement.any()
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
        lambda: engagement_map(small_model(), noise(1), "gradcam++"),
        lambda: EngagementMapper(for_inference(small_model()), config=MapConfig("gradcam++")),
    ):
        with pytest.raises(ValueError, match=r"gradcam\+\+") as refused:
            ask()
        assert all(method in str(refused.value) for method in METHODS)


@pytest.mark.parametrize(
    "clip",
    [
        noise(2)[0],
        noise(2).astype(np.float32),
        noise(2).transpose(0, 3, 1, 2),
        noise(2)[..., :1],
        noise(2)[:, :8, :8],
        noise(2)[:0],
    ],
    ids=["one frame", "floats", "channels first", "grey", "another size", "no frame"],
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
        return (clips * weights[:, : clips.shape[2]]).sum(dim=(1, 2, 3, 4))


def test_bf16_is_used_only_where_its_maps_agree_with_fp32():
    weights = torch.linspace(0.1, 3, SIZE).expand(3, 8, SIZE, SIZE).clone()
    mapper = EngagementMapper(WrongInBf16(weights), config=PUBLISHED)  # pyright: ignore
    assert not mapper.bf16
    ((engagement, _),) = mapper([noise(8)])
    np.testing.assert_array_equal(engagement, weights[0].numpy())
    assert EngagementMapper(Weighted(weights), config=PUBLISHED).bf16 is has_bf16_units(torch.device("cpu"))  # pyright: ignore


def test_a_real_network_in_bf16_keeps_the_map_over_cells_and_all_bits_of_the_prediction(monkeypatch):
    monkeypatch.setattr("scoring.saliency.has_bf16_units", lambda device: True)
    clips = [noise(3, seed) for seed in range(2)]
    untrained = EngagementMapper(for_inference(small_model()))
    assert not untrained.bf16  # its maps have no shape beyond rounding
    monkeypatch.setattr("scoring.saliency.BF16_MIN_CORRELATION", 0.99)
    mapper = EngagementMapper(for_inference(small_model()))
    assert mapper.bf16
    for (E, prediction), (own, predicted) in zip(mapper(clips), untrained(clips), strict=True):
        cells = [F.adaptive_avg_pool2d(torch.from_numpy(of), 4).numpy() for of in (E, own)]
        assert 0.98 < alike(*cells) < 1 - 1e-7
        assert prediction == pytest.approx(predicted, abs=0.05)
    predictions = torch.tensor(mapper.predict(clips))
    assert not torch.equal(predictions, predictions.bfloat16().float())


@pytest.mark.parametrize("architecture", ["r3d_18_w16", "frame_conv3d"])
def test_heads_stay_in_fp32_under_autocast(architecture: str):
    torch.manual_seed(0)
    model = EngagementModel(ModelSpec(architecture=architecture, input_size=SIZE)).eval()
    torch.nn.init.normal_(model.network.fc.weight, std=0.3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = model(torch.rand(2, 3, 2, SIZE, SIZE), torch.tensor([2, 1]))
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())


def test_fp32_is_no_tf32_while_maps_are_made(monkeypatch: pytest.MonkeyPatch):
    def looked_at(model, clips, *rest):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return hires_cam(model, clips, *rest)

    seen, hires_cam, before = [], METHODS["hires_cam"], torch.backends.cudnn.allow_tf32
    mapper = EngagementMapper(small_model(), exact=True)
    monkeypatch.setitem(METHODS, "hires_cam", looked_at)
    mapper([noise(2)])
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32 is before


def test_smoothgrad_is_captums_saliency_of_noisy_copies_averaged():
    model, clip = small_model().eval(), noise(3)
    pixels = to_input(torch.from_numpy(clip[None]))
    total = torch.zeros_like(pixels)
    for copy in seeded_noise(pixels, 5, seed=3):
        total += Saliency(model).attribute((pixels + 0.2 * copy).requires_grad_(True), abs=False)
    expected = (total / 5).abs().amax(dim=1)[0].numpy()
    found = engagement_map(model, clip, replace(unblurred("smoothgrad"), map_samples=5, map_noise=0.2, map_seed=3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.max())
    other = engagement_map(model, clip, replace(unblurred("smoothgrad"), map_samples=5, map_noise=0.2, map_seed=30))
    assert 0.5 < alike(found, other) < 0.9999


def test_grad_x_input_equals_captums():
    model, clip = small_model().eval(), noise(3)
    pixels = to_input(torch.from_numpy(clip[None])).requires_grad_(True)
    expected = InputXGradient(model).attribute(pixels).abs().amax(dim=1)[0].detach().numpy()
    found = engagement_map(model, clip, "grad_x_input")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_integrated_gradients_equal_captums():
    model, clip = small_model().eval(), noise(3)
    pixels = to_input(torch.from_numpy(clip[None]))
    signed = IntegratedGradients(model).attribute(pixels, n_steps=12, method="gausslegendre")
    expected = signed.abs().amax(dim=1)[0].detach().numpy()
    found = engagement_map(model, clip, replace(unblurred("integrated_gradients"), map_samples=12))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.max())


@pytest.mark.parametrize("architecture", ["r3d_18_w16", "r2plus1d_18", "frame_conv3d"])
def test_hires_cam_is_the_sum_of_captums_gradient_times_activation(architecture: str):
    torch.manual_seed(0)
    model = EngagementModel(ModelSpec(architecture=architecture, input_size=SIZE)).eval()
    clip, first = noise(3), model.network.first_maps()
    pixels = to_input(torch.from_numpy(clip[None]))
    signed = LayerGradientXActivation(model, first).attribute(pixels).detach()
    if architecture == "frame_conv3d":
        signed = signed.transpose(0, 1)[None]
    cam = signed.sum(dim=1)
    assert cam.shape == (1, 3, SIZE // 2, SIZE // 2)
    expected = enlarged(cam[0], (3, SIZE, SIZE)).relu().numpy()
    found = engagement_map(model, clip, "hires_cam")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_grad_cam_equals_captums_on_the_last_maps():
    torch.manual_seed(0)
    model = EngagementModel(ModelSpec(architecture="frame_conv3d", input_size=64)).eval()
    clip = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    pixels = to_input(torch.from_numpy(clip[None]))
    expected = LayerGradCam(model, model.network.head[-1]).attribute(pixels, relu_attributions=True)
    found, _, frames = class_activations(model, pixels, None, torch.autocast("cpu", enabled=False))
    assert frames == [3]
    assert found.any()
    np.testing.assert_allclose(found[0], expected[0, 0].detach(), rtol=1e-5, atol=1e-5 * float(found.max()))


def test_grad_cam_of_a_video_resnet_is_the_slope_weighted_sum_of_its_last_maps():
    model, clip = small_model().eval(), noise(9)
    pixels, kept = to_input(torch.from_numpy(clip[None])), {}

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        kept["maps"] = output[0]
        output[0].retain_grad()

    handle = model.network.layer4[-1].register_forward_hook(keep)
    model(pixels).sum().backward()
    handle.remove()
    maps = kept["maps"]
    expected = (maps * maps.grad.mean(dim=(2, 3, 4), keepdim=True)).sum(dim=1).relu()
    found, _, frames = class_activations(model, pixels, None, torch.autocast("cpu", enabled=False))
    assert frames == [2]
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5, atol=1e-5 * float(expected.detach().max()))


def test_maps_are_enlarged_to_where_their_cells_look():
    cam = torch.zeros(2, 7, 7)
    cam[1, 2, 5] = 1
    large = enlarged(cam, (12, 112, 112))
    assert large.shape == (12, 112, 112)
    peak = np.unravel_index(int(large.argmax()), large.shape)
    assert peak[1:] == (32, 80)  # stride 16
    assert peak[0] >= 8  # stride 8: the second cell is centred on frame 8, what follows has no other
    assert float(large[4, 32, 80]) == pytest.approx(0.5)
    assert float(enlarged(cam[:1], (3, 112, 112)).abs().max()) == 0


def test_spectral_residual_finds_a_small_thing_on_a_calm_background_whatever_the_model():
    rng = np.random.default_rng(0)
    calm = cv2.GaussianBlur(rng.normal(128, 300, (128, 128, 3)), (0, 0), 8).clip(0, 255).astype(np.uint8)
    clip = np.repeat(calm[None], 2, axis=0)
    clip[:, 80:96, 32:48] = (30, 200, 90)
    torch.manual_seed(0)
    models = [EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=128)) for _ in range(2)]
    maps = [engagement_map(model, clip, "spectral_residual") for model in models]
    np.testing.assert_array_equal(*maps)
    for second in maps[0]:
        y, x = np.unravel_index(second.argmax(), second.shape)
        assert 72 <= y < 104
        assert 24 <= x < 56


@pytest.mark.parametrize("method", METHODS)
def test_what_a_clip_shares_a_batch_with_does_not_matter(method: str):
    config = MapConfig(method, map_samples=3, smooth_pixels=0.7, smooth_seconds=0.8)
    clips = [noise(seconds, seed) for seed, seconds in enumerate((5, 9, 8, 9, 1))]
    mapper = EngagementMapper(for_inference(small_model()), config=config)
    mapper.max_frames = 45
    together = mapper(clips)
    for clip, (E, prediction) in zip(clips, together, strict=True):
        ((own, predicted),) = mapper([clip])
        np.testing.assert_allclose(E, own, rtol=1e-3, atol=2e-5 * own.max())
        assert prediction == pytest.approx(predicted, abs=1e-4)


@pytest.mark.parametrize(("frames", "at_most"), [(1, 8), (8, 8), (9, 8), (64, 8), (3600, 64)])
def test_windows_cover_a_clip_and_overlap(frames: int, at_most: int):
    windows = windows_of(3, frames, at_most)
    assert windows[0].start == 0
    assert windows[-1].stop == frames
    assert {len(window) for window in windows} == {min(frames, at_most)}
    assert {window.clip for window in windows} == {3}
    for before, after in itertools.pairwise(windows):
        assert at_most // 4 <= before.stop - after.start < at_most


class Attentive(nn.Module):
    """prediction = the mean over frames of each one's own function, so that windows can show the whole's map."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.spec = SimpleNamespace(input_size=SIZE)

    def forward(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        return clips.square().mean(dim=(1, 2, 3, 4))

    def to_log_engagement(self, standardised: float) -> float:
        return standardised


def test_windows_of_a_long_video_blend_without_seams():
    clip = noise(150)
    whole, mean = EngagementMapper(Attentive(), exact=True, config=replace(PUBLISHED, window_frames=150))([clip])[0]  # pyright: ignore
    windowed, predicted = EngagementMapper(Attentive(), exact=True, config=replace(PUBLISHED, window_frames=32))(
        [clip]
    )[0]  # pyright: ignore
    np.testing.assert_allclose(windowed, whole * 150 / 32, rtol=1e-4)
    assert predicted == pytest.approx(mean, rel=0.01)


def test_a_batch_that_does_not_fit_into_memory_is_halved(monkeypatch: pytest.MonkeyPatch, caplog):
    def small_memory(model, clips, *rest):
        if clips.shape[0] * clips.shape[1] > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hires_cam(model, clips, *rest)

    hires_cam, clips = METHODS["hires_cam"], [noise(4, seed) for seed in range(7)]
    mapper = EngagementMapper(for_inference(small_model()))
    expected = mapper(clips)
    monkeypatch.setitem(METHODS, "hires_cam", small_memory)
    for (E, _), (own, _) in zip(mapper(clips), expected, strict=True):
        np.testing.assert_allclose(E, own, rtol=1e-3, atol=2e-5 * own.max())
    assert mapper.max_frames <= 12
    assert "out of memory at 28 frames a batch" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        mapper([noise(11)])


def test_predictions_alone_are_halved_too(monkeypatch: pytest.MonkeyPatch):
    def small_memory(model, pixels, *rest):
        if pixels.shape[0] * pixels.shape[2] > 10:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return predicted_alone(model, pixels, *rest)

    clips = [noise(4, seed) for seed in range(5)]
    mapper = EngagementMapper(for_inference(small_model()))
    expected = mapper.predict(clips)
    monkeypatch.setattr("scoring.saliency.predicted", small_memory)
    assert mapper.predict(clips) == pytest.approx(expected, abs=1e-4)
    assert mapper.max_frames <= 12


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_only_what_says_out_of_memory_is_taken_for_it(error: BaseException, is_memory: bool):
    assert says_out_of_memory(error) is is_memory


@pytest.mark.parametrize(("free_mb", "frames"), [(1000, 400), (1, PROBE_FRAMES), (1_000_000, GPU_FRAMES_A_BATCH)])
def test_a_gpus_batch_takes_the_share_of_free_memory_that_a_probe_says(
    free_mb: int, frames: int, monkeypatch: pytest.MonkeyPatch
):
    mapper = EngagementMapper(for_inference(small_model()))
    stand_ins = {
        "memory_allocated": lambda device: 100 * 2**20,
        "max_memory_allocated": lambda device: (100 + 2 * PROBE_FRAMES) * 2**20,  # 2 MB a frame
        "mem_get_info": lambda device: (free_mb * 2**20, 0),
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": lambda device: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    assert mapper._frames_that_fit() == frames


class Remembering(Attentive):
    """prediction = the mean square of what three frames on either side make together, so a window's ends lack some."""

    def forward(self, clips: Tensor, lengths: Tensor | None = None) -> Tensor:
        over_time = F.conv3d(clips.mean(dim=1, keepdim=True), torch.full((1, 1, 7, 1, 1), 1 / 7), padding=(3, 0, 0))
        return over_time.square().mean(dim=(1, 2, 3, 4))


def test_windows_of_a_network_that_looks_across_time_fade_into_one_another():
    shown, frames = np.full((150, SIZE, SIZE, 3), 128, np.uint8), 32
    shown[:, 0, 0] = 0  # no frame of one colour
    (whole, _), (windowed, _) = (
        EngagementMapper(Remembering(), exact=True, config=replace(PUBLISHED, window_frames=n))([shown])[0]  # pyright: ignore
        for n in (150, frames)
    )
    ratio = windowed[:, 8, 8] / whole[:, 8, 8] * frames / 150
    inner = ratio[6:-6]
    assert np.abs(inner - 1).max() < 0.12  # a window's first and last frame alone are 0.4 off
    assert np.abs(np.diff(inner)).max() < 0.08
    assert np.median(np.abs(inner - 1)) < 1e-5


def test_what_a_long_video_takes_beside_its_map_does_not_grow_with_it():
    mapper = EngagementMapper(Attentive(), exact=True, config=replace(PUBLISHED, window_frames=32))  # pyright: ignore
    beside = []
    for frames in (200, 2000):
        clip = noise(frames)
        tracemalloc.start()
        try:
            ((E, _),) = mapper([clip])
            beside.append(tracemalloc.get_traced_memory()[1] - E.nbytes)
        finally:
            tracemalloc.stop()
    assert beside[1] < beside[0] + E.nbytes / 4  # numpy's; torch holds a batch at a time


def test_blur_keeps_what_is_even_and_looks_at_no_padding():
    even = torch.ones(2, 5, 6, 6)
    lengths = torch.tensor([5, 3])
    even[1, 3:] = 100  # padding
    blurred = gaussian_blurred(even, 1, 2.0, lengths)
    assert torch.allclose(blurred[0], torch.ones(5, 6, 6))
    assert torch.allclose(blurred[1, :3], torch.ones(3, 6, 6))
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    spread = gaussian_blurred(gaussian_blurred(point, 2, 1.0), 3, 1.0)
    assert float(spread[0, 0, 4, 5] / spread[0, 0, 4, 4]) == pytest.approx(np.exp(-0.5), rel=1e-3)
    assert float(spread.sum()) == pytest.approx(1, abs=0.01)


def test_models_that_cannot_be_explained_are_refused():
    broken = small_model()
    with torch.no_grad():
        broken.network.fc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"no numbers in network\.fc\.weight"):
        engagement_map(broken, noise(2))
    constant = small_model()
    torch.nn.init.zeros_(constant.network.fc.weight)
    with pytest.raises(ValueError, match="the same whatever it is shown"):
        EngagementMapper(for_inference(constant))
