"""Tests of maps: against predictions whose answer is known."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from scoring.evidence import summed_up, verdicts
from scoring.faithfulness import (
    Examiner,
    alike,
    inside,
    perturbation_curves,
    randomised,
    reencoded,
    stability,
    tubelets,
)
from scoring.saliency import EngagementMapper, engagement_map
from scoring.settings import FaithfulnessConfig, MapConfig, unblurred
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


def areas(E: np.ndarray, clip: np.ndarray, config: FaithfulnessConfig = CONFIG) -> dict[str, float]:
    return {name: curve.mean() for name, curve in perturbation_curves(corner, clip, E, config).items()}


def test_a_map_of_what_matters_beats_other_orders_and_one_of_what_does_not_loses():
    clip = textured()
    right = np.zeros(clip.shape[:3])
    right[0, :8, :8] = 1
    spread = corner([clip])[0]
    curves = perturbation_curves(corner, clip, right, CONFIG)
    assert len(curves) == 2 * 2 * 3  # deletion and insertion, infills, orders
    assert curves["deletion/mean colour/E"] == pytest.approx([spread] * 3)  # gone with the first tubelet
    assert curves["insertion/mean colour/E"] == pytest.approx([0] * 3)  # back with the first
    good, bad = areas(right, clip), areas(1 - right, clip)
    for infill in ("blur", "mean colour"):
        for other in ("random", "centre"):
            assert good[f"deletion/{infill}/E"] > good[f"deletion/{infill}/{other}"] + 0.1 * spread
            assert good[f"insertion/{infill}/E"] < good[f"insertion/{infill}/{other}"] - 0.1 * spread
        assert bad[f"deletion/{infill}/E"] < bad[f"deletion/{infill}/random"]
        assert bad[f"insertion/{infill}/E"] > bad[f"insertion/{infill}/random"]


def test_a_map_that_says_nothing_is_like_a_random_order():
    flat = [areas(np.ones((3, SIZE, SIZE)), textured(seed=seed), FaithfulnessConfig(8, 4, 4, seed))
            for seed in range(40)]  # fmt: skip
    mean = np.mean([found["deletion/mean colour/E"] - found["deletion/mean colour/random"] for found in flat])
    assert abs(mean) < 0.15 * corner([textured()])[0]


def test_a_brief_examination_takes_one_infill():
    found = areas(np.ones((3, SIZE, SIZE)), textured(), FaithfulnessConfig(8, 4, 1, brief=True))
    assert set(found) == {f"{what}/blur/{order}" for what in ("deletion", "insertion") for order in ("E", "random")}


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
    mapper = EngagementMapper(for_inference(network()), config=unblurred("gradient"))
    clip = textured()
    found = stability(mapper, clip, mapper([clip])[0][0])
    assert set(found) == {"encoded again", "moved by a pixel", "mirrored"}
    assert all(-1 <= value <= 1 for value in found.values())
    assert found["encoded again"] > 0.3


def test_encoding_again_keeps_size_and_content():
    calm = np.repeat(np.linspace(0, 255, SIZE).astype(np.uint8)[None, None, :, None], 4, axis=0)
    clip = np.ascontiguousarray(np.broadcast_to(calm, (4, SIZE, SIZE, 3)))
    again = reencoded(clip)
    assert again.shape == clip.shape
    assert 0 < np.abs(again.astype(int) - clip).mean() < 8


def test_frames_of_an_odd_size_are_encoded_again():
    clip = textured()[:, :31, :29]
    again = reencoded(clip)
    assert again.shape == clip.shape
    assert np.abs(again.astype(int) - clip).mean() < 80


def test_predictions_alone_are_those_beside_maps():
    mapper = EngagementMapper(for_inference(network()))
    clips = [textured(seconds, seconds) for seconds in (2, 5, 3)]
    assert mapper.predict(clips) == pytest.approx([prediction for _, prediction in mapper(clips)], abs=1e-4)


def test_the_inside_of_a_map_is_without_its_border():
    E = np.zeros((2, 14, 28))
    E[:, 2:-2, 4:-4] = 1
    assert inside(E).shape == (2, 10, 20)
    assert inside(E).all()


def test_alike_is_a_rank_correlation():
    a = np.random.default_rng(0).random((2, 4, 4))
    assert alike(a, a**3) == pytest.approx(1)
    assert alike(a, -a) == pytest.approx(-1)
    assert np.isnan(alike(a, np.zeros_like(a)))  # says nothing, so it is no proof of another map


@pytest.mark.parametrize("brief", [False, True])
def test_an_examination_of_clips(brief: bool):
    config = FaithfulnessConfig(8, 3, 1, brief=brief)
    examine = Examiner(network(), "cpu", MapConfig(), config, shuffled=network(1), others=[network(), network(2)])
    clips = [textured(3), textured(5, 1)]
    shown = np.ones(clips[0].shape[:3], bool)
    first, second = examine(clips, [shown, None])
    stages = {"stem"} if brief else {"fc", "layer4", "layer3", "layer2", "layer1", "stem"}
    assert {name.removeprefix("randomised/") for name in first if name.startswith("randomised/")} == stages
    assert {f"randomised_inside/{stage}" for stage in stages} <= set(first)
    assert {name for name in first if name.count("/") == 3} == {
        f"{what}/{infill}/{order}/{level}"
        for what in ("deletion", "insertion")
        for infill in (("blur",) if brief else ("blur", "mean colour"))
        for order in (("E", "random") if brief else ("E", "centre", "random"))
        for level in (1, 2)
    }
    assert first["model/0"] == pytest.approx(1)  # the same weights
    assert first["model/1"] < 0.9
    assert first["shuffled"] < 0.9
    assert (first["model_inside/0"], first["model_inside/1"] < 0.9) == (pytest.approx(1), True)
    assert first["shuffled_inside"] < 0.9
    assert first["pe/own"] == pytest.approx(first["pe/0"])
    assert first["pe/own"] > 0
    assert set(second) == {name for name in first if not name.startswith("pe/")}  # nothing is known of its product
    (alone,) = examine(clips[1:], [None])
    assert second == pytest.approx(alone, abs=1e-3)


def test_black_clips_prove_nothing():
    examine = Examiner(network(), "cpu", MapConfig(), FaithfulnessConfig(8, 3, 1, brief=True))
    evidence = summed_up(examine([np.zeros((3, SIZE, SIZE, 3), np.uint8)] * 3, [None] * 3))
    assert verdicts(evidence) == []
    assert evidence["randomised_inside"]["stem"]["mean"] is None


def test_a_brief_examiner_draws_weights_once_for_all_clips(monkeypatch: pytest.MonkeyPatch):
    examine = Examiner(network(), "cpu", MapConfig(), FaithfulnessConfig(8, 3, 1, brief=True))
    first = examine([textured()], [None])
    monkeypatch.setattr("scoring.faithfulness.randomised", lambda *given: pytest.fail("drawn again"))
    assert examine([textured()], [None]) == first
