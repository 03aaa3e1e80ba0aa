"""Numbers that people leave behind: counts made by the engaging element, revenue made by true PE."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catalog.world.config import WorldConfig
from catalog.world.script import AMOUNT_NONE, AMOUNT_RANGE, Stream, VideoScript, stream

SIGNAL_MEAN = (1 - AMOUNT_NONE) * sum(AMOUNT_RANGE) / 2
SIGNAL_SD = (AMOUNT_RANGE[1] - AMOUNT_RANGE[0]) / np.sqrt(12)
LOG_FOLLOWERS_MEAN, LOG_FOLLOWERS_SD = 10.0, 1.1


@dataclass(frozen=True)
class Counts:
    likes: int
    comments: int
    shares: int
    views: int


def followers_of(seed: int, creator: int) -> int:
    rng = stream(seed, Stream.CREATOR, creator)
    return int(np.exp(rng.normal(LOG_FOLLOWERS_MEAN, LOG_FOLLOWERS_SD)))


def draw_counts(config: WorldConfig, seed: int, script: VideoScript, followers: int, signal: float) -> Counts:
    """Log counts = level + reach + standardised signal + noise; views know reach and noise only."""
    rng = stream(seed, Stream.COUNTS, script.index)
    reach = (np.log(max(followers, 1)) - LOG_FOLLOWERS_MEAN) / LOG_FOLLOWERS_SD
    drive = config.reach_effect * reach + config.signal_effect * (signal - SIGNAL_MEAN) / SIGNAL_SD
    noise = rng.normal(0, config.count_noise, 4) * (1.0, 1.15, 1.3, 1.0)
    shares, likes, comments = (
        round(float(np.exp(level + drive + error))) for level, error in zip((5.6, 7.8, 4.6), noise[:3], strict=True)
    )
    views = round(float(np.exp(11.6 + 0.8 * reach + 1.2 * noise[3])))
    return Counts(likes, comments, shares, max(views, likes))


def true_lifts(config: WorldConfig, seed: int, firsts: Sequence[int], pe: np.ndarray, *, effect: bool) -> np.ndarray:
    """Lift in daily revenue, (N,), of the videos `firsts`: effect * standardised PE + noise, or noise."""
    noise = [stream(seed, Stream.SALES, 1_000_000 + index).normal(0, config.lift_noise) for index in firsts]
    spread = float(pe.std())
    standard = (pe - pe.mean()) / spread if spread > 0 else np.zeros_like(pe)
    return np.array(noise) + (config.lift_effect * standard if effect else 0.0)


def first_videos(scripts: Sequence[VideoScript]) -> dict[int, VideoScript]:
    """Each product's first video to post: the one that makes its lift."""
    firsts: dict[int, VideoScript] = {}
    for script in sorted(scripts, key=lambda script: (script.posted_at_s, script.index)):
        if script.product is not None:
            firsts.setdefault(script.product, script)
    return firsts


@dataclass(frozen=True)
class Sales:
    """A product's daily revenue and search index, (days,) each."""

    revenue: np.ndarray
    search_index: np.ndarray


def draw_sales(
    config: WorldConfig, seed: int, product: int, *, lift: float = 0.0, post_day: int | None = None
) -> Sales:
    """Product level + day effect + search interest + noise, and from the day after `post_day` the lift."""
    days = np.arange(config.sales_days)
    shared = stream(seed, Stream.SALES, 0)
    day_effect = 5 * np.sin(2 * np.pi * days / 7) + np.cumsum(shared.normal(0, 0.6, days.size))
    rng = stream(seed, Stream.SALES, 1 + product)
    level = 80 + 60 * rng.lognormal(0, 0.5)
    interest, value = np.empty(days.size), 0.0
    for day in days:
        value = 0.85 * value + rng.normal(0, 4)
        interest[day] = 50 + value
    revenue = level + day_effect + 0.3 * (interest - 50) + rng.normal(0, 4, days.size)
    if post_day is not None:
        revenue = revenue + lift * (days > post_day)
    return Sales(revenue.clip(0).round(3), interest.clip(0).round(2))
