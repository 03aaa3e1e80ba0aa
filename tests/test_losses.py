"""The training losses, worked out by hand."""

import math

import pytest
import torch

from training.losses import LOSSES, SMALLEST_SHARE
from training.settings import LoopConfig

LABEL = torch.tensor([-1.0, 0.0, 3.0])
ONES = torch.ones(3)


def loss_of(name: str, prediction: list[float], weight: torch.Tensor = ONES) -> float:
    return LOSSES[name]((-1.0, 3.0))(torch.tensor(prediction, dtype=torch.float32), LABEL, weight).item()


@pytest.mark.parametrize("name", ["huber", "mse", "mape"])
def test_a_perfect_prediction_costs_nothing(name: str) -> None:
    assert loss_of(name, LABEL.tolist()) == 0


def test_values_by_hand() -> None:
    assert loss_of("mse", [0, 0, 0]) == pytest.approx((1 + 0 + 9) / 3)
    assert loss_of("huber", [0, 0, 0]) == pytest.approx((0.5 + 0 + 2.5) / 3)
    shares = (SMALLEST_SHARE, 1 / 4, 1)  # of the label's place in its range
    assert loss_of("mape", [0, 0, 0]) == pytest.approx((1 / 4 / shares[0] + 0 + 3 / 4 / shares[2]) / 3)


@pytest.mark.parametrize("name", ["huber", "mse", "mape"])
def test_a_video_counts_as_much_as_it_weighs_even_alone(name: str) -> None:
    whole, tenth = loss_of(name, [9, 9, 9]), loss_of(name, [9, 9, 9], ONES / 10)
    assert tenth == pytest.approx(whole / 10)
    assert loss_of(name, [-1, 0, 99], torch.tensor([1.0, 1, 0])) == 0


def test_rank_leaves_out_pairs_with_a_video_of_no_weight() -> None:
    weight = torch.tensor([1.0, 1, 0])
    assert loss_of("rank", [0, 0.5, 99], weight) == pytest.approx(loss_of("rank", [0, 0.5, -99], weight))


def test_rank_rewards_order_alone_and_takes_ties_and_single_videos() -> None:
    right, wrong = loss_of("rank", [-1, 0, 1]), loss_of("rank", [1, 0, -1])
    assert right < wrong
    tied = LOSSES["rank"]((0.0, 1.0))(torch.zeros(3), torch.zeros(3), ONES)
    alone = LOSSES["rank"]((0.0, 1.0))(torch.zeros(1), torch.zeros(1), ONES[:1])
    assert tied.item() == alone.item() == 0
    assert math.isfinite(loss_of("rank", [1e4, -1e4, 0]))


def test_every_choice_of_the_flag_has_its_loss() -> None:
    assert LoopConfig().loss in LOSSES
    assert set(LOSSES) == {"huber", "mse", "mape", "rank"}
