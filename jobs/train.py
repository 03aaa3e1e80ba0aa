"""Train the engagement model: python -m jobs.train --videos V"""

import dataclasses

from catalog.sampling import SamplingConfig
from jobs.command import run_job
from tracking.names import LOCAL_STORE
from training.settings import LoopConfig, SplitConfig, TargetConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    videos: str
    """table of videos (.parquet, .csv, .jsonl; local or s3://): video_id, video_uri, creator_id and the target"""
    products: str | None = None
    """table of products; where given, every product_id of the videos must be in it"""
    architecture: str = "r3d_18"
    """r3d_18, mc3_18, r2plus1d_18, frame_conv3d (a network for images on every frame and one 3D convolution), or
    r3d_18_w16, r3d_18 with a quarter of the channels, for trials on CPUs"""
    init_weights: str | None = None
    """checkpoint (local or s3://) with torchvision's keys to start from: Kinetics-400's for the video networks,
    ImageNet's resnet18 for frame_conv3d"""
    input_size: int = 112
    """height and width to which frames are squashed, pixels; also E's grid"""
    targets: TargetConfig = dataclasses.field(default_factory=TargetConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    workers: int = 1
    """Ray Train workers, a GPU each where the cluster has them"""
    cpus_per_worker: int | None = None
    """cores of a worker; default: all cores, shared evenly (with GPUs: 4)"""
    wait_for_workers: float = 120.0
    """seconds to wait for nodes that the workers need, where the job joins a cluster that may still grow"""
    shuffled_control: bool = True
    """train a second model on shuffled labels, for as long: what it reaches is chance; --no-shuffled-control saves
    its time"""
    sweep: str | None = None
    """YAML file with lists of values for flags, such as learning-rate: [0.001, 0.003]: tries all combinations, then
    trains with the one that does best on the validation videos (needs --validation-fraction)"""
    storage: str = str(LOCAL_STORE / "training")
    """folder for checkpoints until the run is done; on a cluster a shared one, such as s3://"""
    clip_cache: str | None = None
    """folder in which decoded clips are kept for later runs; default: clips in --storage"""
    name: str | None = None
    """name of the run; default: from its settings, so that the same command goes on with a run that was cut off"""
    max_failed_fraction: float = 0.5
    """exit with 3 where more than this share of the videos could not be decoded"""
    unknown_at_posting: tuple[str, ...] = ()
    """columns that the metadata baseline must not see, because they are known only after a video was posted; the usual
    counts never are"""
    limit: int | None = None
    """only the first so many videos, for a trial"""
    dry_run: bool = False
    """print the plan and the resources, write nothing and stop"""


def main(config: TrainConfig) -> int:
    from jobs.steps import train

    return train.main(config)


if __name__ == "__main__":
    run_job(TrainConfig, main, __doc__ or "")
