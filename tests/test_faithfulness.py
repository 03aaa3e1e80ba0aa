"""Tests of maps: against predictions whose answer is known."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from scoring.faithfulness import alike, gains, perturbed, randomised, reencoded, stability, tubelets
from scoring.saliency import EngagementMapper, engagement_map
from scoring.settings import FaithfulnessConfig
from training.models import EngagementModel, ModelSpec, for_inference

SIZE = 32
CONFIG = FaithfulnessConfig(tubelet_pixels=8, levels=4, random_orders=4)


def textured(seconds: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (seconds, SIZE, SIZE, 3), dtype=np.uint8)


def network(seed: int = 0) -> EngagementModel:
    torch.manual_seed(seed)
    model = EngagementModel(ModelSpec(architecture="r3d_18_w16", input_size=SIZE))
    torch.nn.init.normal_(model.network.fc.weight, std=0.5)  # pyright: ignore
    return model.eval()


def corner(clips: Sequence[np.ndarray]) -> list[float]:
    """Only the first second's upper left corner counts, by how much its pixels vary."""
    return [float(clip[0, :8, :8].std(axis=(0, 1)).mean()) for clip in clips]


def test_tubelets_are_squares_of_a_second():
    cells = tubelets((2, 20, 16), 8)
    assert cells.shape == (2, 20, 16)
    assert cells.max() == 2 * 3 * 2 - 1
    assert len(np.unique(cells[0, :8, :8])) == 1
    assert len(np.unique(cells[1, 16:, 8:])) == 1
    assert cells[0, 0, 0] != cells[1, 0, 0]


def test_a_map_of_what_matters_beats_other_orders_and_one_of_what_does_not_loses():
    clip = textured()
    right = np.zeros(clip.shape[:3])
    right[0, :8, :8] = 1
    areas = perturbed(corner, clip, right, CONFIG)
    assert len(areas) == 2 * 2 * 3  # deletion and insertion, infills, orders
    spread = corner([clip])[0]
    assert areas["deletion", "mean colour", "E"] == pytest.approx(spread)  # gone with the first tubelet
    assert areas["insertion", "mean colour", "E"] == pytest.approx(0)  # back with the first
    for over in ("random", "centre"):
        assert min(gains(areas, over).values()) > 0.1 * spread
    assert max(gains(perturbed(corner, clip, 1 - right, CONFIG)).values()) < 0


def test_a_map_that_says_nothing_is_like_a_random_order():
    flat = [gains(perturbed(corner, textured(seed=seed), np.ones((3, SIZE, SIZE)), FaithfulnessConfig(8, 4, 4, seed)))
            for seed in range(40)]  # fmt: skip
    mean = np.mean([gain["deletion", "mean colour"] for gain in flat])
    assert abs(mean) < 0.15 * corner([textured()])[0]


def test_ever_more_stages_are_drawn_anew_and_the_model_is_left_as_it_was():
    model = network()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    stages = list(randomised(model, seed=1))
    assert [name for name, _ in stages] == ["fc", "layer4", "layer3", "layer2", "layer1", "stem"]
    for i, (_, copied) in enumerate(stages):
        changed = {
            name.split(".")[1]
            for name, values in copied.state_dict().items()
            if name.startswith("network") and "weight" in name and not torch.equal(values, before[name])
        }
        assert changed == {name for name, _ in stages[: i + 1]}
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    clip = textured()
    own = engagement_map(model, clip)
    assert alike(own, engagement_map(stages[-1][1], clip)) < 0.5
    again = list(randomised(model, seed=1))[-1][1].state_dict()
    assert all(torch.equal(values, again[name]) for name, values in stages[-1][1].state_dict().items())


def test_maps_are_compared_with_those_of_the_clip_encoded_again_moved_and_mirrored():
    mapper = EngagementMapper(for_inference(network()))
    found = stability(mapper, textured())
    assert set(found) == {"encoded again", "moved by a pixel", "mirrored"}
    assert all(-1 <= value <= 1 for value in found.values())
    assert found["encoded again"] > 0.3


def test_encoding_again_keeps_size_and_content():
    calm = np.repeat(np.linspace(0, 255, SIZE).astype(np.uint8)[None, None, :, None], 4, axis=0)
    clip = np.ascontiguousarray(np.broadcast_to(calm, (4, SIZE, SIZE, 3)))
    again = reencoded(clip)
    assert again.shape == clip.shape
    assert 0 < np.abs(again.astype(int) - clip).mean() < 8


def test_predictions_alone_are_those_beside_maps():
    mapper = EngagementMapper(for_inference(network()))
    clips = [textured(seconds, seconds) for seconds in (2, 5, 3)]
    assert mapper.predict(clips) == pytest.approx([prediction for _, prediction in mapper(clips)], abs=1e-4)


def test_alike_is_a_rank_correlation():
    a = np.random.default_rng(0).random((2, 4, 4))
    assert alike(a, a**3) == pytest.approx(1)
    assert alike(a, -a) == pytest.approx(-1)
    assert alike(a, np.zeros_like(a)) == 0
