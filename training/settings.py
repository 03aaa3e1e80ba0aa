"""What can be set about training. Light to import: a command line is read before torch and Ray are loaded."""

import dataclasses
from typing import Literal

Loss = Literal["huber", "mse", "mape", "rank"]
SplitBy = Literal["creator", "time", "creator+time", "random"]
Target = Literal["shares", "likes", "comments", "views", "shares_per_view", "likes_per_view", "comments_per_view"]


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """What the model learns to predict."""

    target: Target = "shares"
    """log1p of this count, or of this count per 1,000 views"""
    residualize: tuple[str, ...] = ()
    """take out of the target what these columns explain, such as creator_id,followers,posted_hour,duration,category:
    an effect for each id or word, a line through each number (counts as log1p). posted_hour and posted_weekday come
    from posted_at, duration from the video where the table has no such column"""
    winsorize: float = 0.0
    """training targets beyond this share at either end are set to where it begins, such as 0.01"""
    min_age_days: float = 0.0
    """leave out videos posted less than so many days before --as-of: their counts still grow"""
    as_of: str | None = None
    """when the counts were taken, such as 2026-11-01; default: the column scraped_at where there is one, else
    the start of today (UTC)"""
    suspicious_weight: float = 0.1
    """of videos whose counts contradict one another (likes above views and the like), where others weigh 1"""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How the network is fitted."""

    epochs: int = 15
    """passes over the training videos"""
    batch_size: int = 8
    """videos a step, over all workers"""
    loss: Loss = "huber"
    """huber, mse, mape (as published: relative to the target scaled to [0, 1]), or rank (of pairs within a batch)"""
    learning_rate: float = 2e-3
    """AdamW's highest, after a warm-up of three tenths of the steps; then a cosine down to 0. With --init-weights less,
    such as 3e-4"""
    backbone_rate: float = 1.0
    """the backbone's learning rate as a share of the head's; with --init-weights such as 0.1"""
    frozen_epochs: int = 0
    """first so many epochs in which only the head learns; with --init-weights, as many as --epochs to keep it so"""
    weight_decay: float = 0.05
    """AdamW's"""
    patience: int = 0
    """end after so many epochs without a better SRCC on the validation videos, and keep the best epoch; 0: keep the
    last. Needs --validation-fraction"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the GPU or CPU has units for it"""
    input_noise: float = 0.2
    """standard deviation of the noise added to training clips, as a share of the pixels' range; reached half-way"""
    max_shift: int = 16
    """training clips are moved by up to so many pixels, up or down, left or right; edges are mirrored into the gap"""
    max_clip_frames: int = 32
    """longer videos are trained on by a random window of so many sampled frames; judged on the whole"""


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Which videos the model is judged on."""

    split: SplitBy = "creator"
    """held out are whole creators, the newest videos, the newest videos of held-out creators (what they posted before
    and what others posted since is left out), or any (which flatters: creators and series are on both sides)"""
    held_out_fraction: float = 0.25
    """share of the videos (of creators and of time for creator+time) that training never sees"""
    validation_fraction: float = 0.0
    """share of the other videos, split likewise, that choose the epoch with --patience; without, each epoch is shown
    on the held-out videos, which choose nothing"""
    seed: int = 0
    """of the split, the initial weights, the order and the augmentation"""
