"""What can be set about scoring. Light to import: a command line is read before torch and Ray are loaded."""

import dataclasses
from typing import Literal

Order = Literal["table", "newest", "largest-reach", "random"]
"""in which a catalogue is worked off"""


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """How the engagement map E is made."""

    method: str = "hires_cam"
    """hires_cam, gradient (as published), smoothgrad, grad_x_input, integrated_gradients, grad_cam, or
    spectral_residual, which asks no model"""
    smooth_pixels: float = 3.0
    """standard deviation of the Gaussian that E is blurred with in each second, pixels of the model's input; with
    gradient, 0 here and below: E as published"""
    smooth_seconds: float = 0.5
    """standard deviation of the Gaussian that E is blurred with over time, sampled frames"""
    map_samples: int = 16
    """noisy copies of smoothgrad, steps of integrated_gradients"""
    map_noise: float = 0.15
    """standard deviation of smoothgrad's noise, as a share of the pixels' range"""
    map_seed: int = 0
    """of smoothgrad's noise"""
    window_frames: int = 64
    """videos of more sampled frames are mapped by windows of so many that overlap by a quarter"""


def unblurred(method: str = MapConfig.method) -> MapConfig:
    """The map as the method's authors have it; of ``gradient``: as published."""
    return MapConfig(method, smooth_pixels=0.0, smooth_seconds=0.0)


@dataclasses.dataclass(frozen=True)
class FaithfulnessConfig:
    """How engagement maps are put to the test."""

    tubelet_pixels: int = 16
    """side of the square that is deleted or inserted for a second, pixels of the model's input"""
    levels: int = 10
    """parts in which tubelets are deleted and inserted"""
    random_orders: int = 3
    """random orders that E's is compared with"""
    faithfulness_seed: int = 0
    """of the sample, random orders and random weights"""
    brief: bool = False
    """one infill, no order from the centre, all weights drawn anew at once: a fraction of the cost"""


BRIEF = FaithfulnessConfig(levels=4, random_orders=1, brief=True)
"""What every scoring run does on a few of its videos."""


@dataclasses.dataclass(frozen=True)
class ProductConfig:
    """How a product is looked for."""

    working_short_side: int = 576
    """short side to which frames are reduced before the search, pixels; smaller frames stay as they are"""
    coarse_short_side: int = 288
    """short side at which the whole frame is searched; the working one is for a closer look where that is needed"""
    match_ratio: float = 0.9
    """Lowe's ratio: the best match must be this much closer than the second"""
    min_inliers: int = 7
    """matches that must agree with one homography"""
    product_method: Literal["outline", "hull"] = "outline"
    """outline (the product's own outline by a checked homography), or hull (convex hull of unchecked matches, as
    published)"""
    min_probability: float = 0.25
    """calibrated, that it is the product and no look-alike: what a second needs that is looked at by itself. Beside one
    with 0.9 or more, 0.05 is enough; one without a neighbour, and a further copy in a frame, need 0.9"""


@dataclasses.dataclass(frozen=True)
class VideoLimits:
    """What one video may cost before it is given up as an error row."""

    video_timeout: float = 300.0
    """seconds of wall time for all that is done with one video: error decode_timeout"""
    video_memory_mb: float = 4096.0
    """memory of the decoding process, megabytes: error out_of_memory"""
