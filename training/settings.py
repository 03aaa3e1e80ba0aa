"""What can be set about training. Light to import: a command line is read before torch and Ray are loaded."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How the network is fitted."""

    epochs: int = 15
    """passes over the training videos"""
    batch_size: int = 8
    """videos a step, over all workers"""
    learning_rate: float = 2e-3
    """AdamW's highest, after a warm-up of three tenths of the steps; then a cosine down to 0. With --init-weights less,
    such as 3e-4"""
    weight_decay: float = 0.05
    """AdamW's"""
    input_noise: float = 0.2
    """standard deviation of the noise added to training clips, as a share of the pixels' range; reached half-way"""
    max_shift: int = 16
    """training clips are moved by up to so many pixels, up or down, left or right; edges are mirrored into the gap"""
    max_clip_frames: int = 32
    """longer videos are trained on by a random window of so many sampled frames; judged on the whole"""


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """Which videos the model is judged on: whole creators, so that it cannot win by knowing them."""

    held_out_fraction: float = 0.25
    """share of the videos, by whole creators, that training never sees"""
    seed: int = 0
    """of the split, the initial weights, the order and the augmentation"""
