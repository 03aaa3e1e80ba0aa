"""What the model learns: log1p of an engagement count, and which videos are held out to judge it."""

import collections
import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import Refused
from training.settings import SplitConfig

MIN_VIDEOS = 8
FEW_VIDEOS = 100


@dataclasses.dataclass(frozen=True)
class Examples:
    """Labelled videos and their side of the split."""

    table: pa.Table
    """video_id, video_uri, creator_id, label (log1p of the target), held_out (bool)"""
    without_label: int
    """videos left out because their target is null"""
    warnings: tuple[str, ...]


def examples(videos: pa.Table, videos_uri: str, target: str, split: SplitConfig) -> Examples:
    """Label and split a videos table. Raises Refused where there is too little to learn from."""
    if not 0 < split.held_out_fraction < 1:
        raise Refused(f"--held-out-fraction is {split.held_out_fraction}, expected a number between 0 and 1")
    labelled = videos.filter(pc.is_valid(videos[target]))
    if labelled.num_rows < MIN_VIDEOS:
        raise Refused(
            f"{videos_uri}: {labelled.num_rows} of {videos.num_rows} videos have {target}; at least {MIN_VIDEOS} "
            f"are needed, and some thousands to learn well"
        )
    if pc.count_distinct(labelled[target]).as_py() == 1:
        raise Refused(f"{videos_uri}: all {target} are {labelled[target][0].as_py()}: there is nothing to learn")
    warnings = []
    if labelled.num_rows < FEW_VIDEOS:
        warnings.append(
            f"{labelled.num_rows} videos are too few to learn from (at least {FEW_VIDEOS}, better some thousands): "
            "this model's maps and scores mean nothing"
        )
    creators = labelled["creator_id"].to_pylist()
    unknown = creators.count(None)
    if unknown:
        warnings.append(f"{unknown} videos have no creator_id; each is taken as a creator of its own")
    groups = [creator if creator is not None else f"\0{i}" for i, creator in enumerate(creators)]
    table = pa.table(
        {
            "video_id": labelled["video_id"],
            "video_uri": labelled["video_uri"],
            "creator_id": labelled["creator_id"],
            "label": pc.log1p(pc.cast(labelled[target], pa.float64())),
            "held_out": pa.array(_held_out(groups, split, videos_uri)),
        }
    )
    return Examples(table.combine_chunks(), videos.num_rows - labelled.num_rows, tuple(warnings))


def _held_out(groups: list[str], split: SplitConfig, videos_uri: str) -> list[bool]:
    names = sorted(set(groups))
    if len(names) < 2:
        raise Refused(
            f"{videos_uri}: all videos are of one creator, so no creator can be held out to judge the model; "
            "add videos of other creators"
        )
    order = np.random.default_rng(split.seed).permutation(len(names))
    wanted = split.held_out_fraction * len(groups)
    counts = collections.Counter(groups)
    chosen: set[str] = set()
    taken = 0
    for name in (names[i] for i in order):
        if taken + counts[name] <= wanted:
            chosen.add(name)
            taken += counts[name]
    if not chosen:  # every creator has more videos than are wanted
        chosen.add(min(names, key=lambda name: counts[name]))
    return [group in chosen for group in groups]
