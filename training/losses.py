"""What training makes small: functions of predictions, labels (both in standard deviations) and weights
(from 0 to 1), each (B,)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

SMALLEST_SHARE = 0.05
"""of the target's range: MAPE divides by no less"""
SCALE_SHARE = 0.1
"""of Huber in the rank loss"""


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Over the number of videos, not their weights: a suspicious video counts little even in a batch of its own."""
    return (values * weights).mean()


def huber(prediction: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    return weighted_mean(nn.functional.huber_loss(prediction, label, reduction="none"), weight)


def mse(prediction: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    return weighted_mean((prediction - label) ** 2, weight)


def mape(low: float, high: float) -> Loss:
    """As in Yang, Zhang & Zhang (2025): relative to the target scaled to [0, 1] over the training videos, here to no
    less than SMALLEST_SHARE of the range. low, high: the ends of that range."""

    def loss(prediction: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        share = ((label - low) / (high - low)).clamp(min=SMALLEST_SHARE)
        return weighted_mean((prediction - label).abs() / (high - low) / share, weight)

    return loss


def rank(prediction: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """The logistic loss of all pairs within the batch (Burges et al. 2005, RankNet), which knows no scale, and a tenth
    of Huber's, which fixes one."""
    first, second = torch.triu_indices(len(label), len(label), offset=1, device=label.device)
    order = torch.sign(label[first] - label[second])
    pairs = weight[first] * weight[second] * order.abs()
    losses = nn.functional.softplus(-order * (prediction[first] - prediction[second]))
    return (losses * pairs).sum() / order.abs().sum().clamp(min=1) + SCALE_SHARE * huber(prediction, label, weight)


LOSSES: dict[str, Callable[[tuple[float, float]], Loss]] = {
    "huber": lambda _: huber,
    "mse": lambda _: mse,
    "mape": lambda ends: mape(*ends),
    "rank": lambda _: rank,
}
"""name -> loss, given the lowest and the highest training label"""
