"""Which videos the model learns from and which it is judged on."""

import numpy as np
import pandas as pd
import pyarrow as pa

from catalog.errors import Refused
from training.settings import SplitBy, SplitConfig, TargetConfig
from training.targets import labelled

OLDER = "held-out videos older than the newest seen"
TRAINING, VALIDATION, HELD_OUT, LEFT_OUT = "training", "validation", "held_out", "left_out"


def sides(table: pd.DataFrame, videos_uri: str, split: SplitConfig) -> np.ndarray:
    """(N,) TRAINING, VALIDATION, HELD_OUT or LEFT_OUT for each of the table's videos (creator_id, posted_at).

    Raises Refused where the table does not have what it takes.
    """
    for flag, share in (("held-out", split.held_out_fraction), ("validation", split.validation_fraction)):
        if not (0 < share < 1 or (share == 0 and flag == "validation")):
            raise Refused(f"--{flag}-fraction is {share}, expected a number between 0 and 1")
    held_out, left_out = _parts(table, videos_uri, split.split, split.held_out_fraction, split.seed)
    side = np.where(held_out, HELD_OUT, np.where(left_out, LEFT_OUT, TRAINING)).astype(object)
    if split.validation_fraction:
        rest = np.flatnonzero(side == TRAINING)
        chosen, unused = _parts(table.iloc[rest], videos_uri, split.split, split.validation_fraction, split.seed + 1)
        side[rest[chosen]], side[rest[unused]] = VALIDATION, LEFT_OUT
    return side


def held_out_ids(videos: pa.Table, videos_uri: str, targets: TargetConfig, split: SplitConfig) -> set[str]:
    """The videos that jobs.train would hold out of a videos table."""
    table = labelled(videos, videos_uri, targets).table
    return set(table["video_id"][sides(table, videos_uri, split) == HELD_OUT])


def overlaps(table: pd.DataFrame, side: np.ndarray) -> dict[str, int]:
    """How much the held-out videos share with those that the model has seen: creators, products, files, and how many
    of them were posted before the newest of those."""
    seen, judged = table[np.isin(side, (TRAINING, VALIDATION))], table[side == HELD_OUT]
    shared = {
        what: len(set(seen[name].dropna()) & set(judged[name].dropna()))
        for name, what in (("creator_id", "creators"), ("product_id", "products"), ("video_uri", "files"))
        if name in table
    }
    if "posted_at" in table and table["posted_at"].notna().any():
        shared[OLDER] = int((judged["posted_at"] < seen["posted_at"].max()).sum())
    return shared


def _parts(
    table: pd.DataFrame, videos_uri: str, by: SplitBy, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """bool (N,) twice: held out, and left out of both sides."""
    none = np.zeros(len(table), bool)
    if by == "random":
        order = np.random.default_rng(seed).permutation(len(table))
        held_out = none.copy()
        held_out[order[: max(1, round(fraction * len(table)))]] = True
        return held_out, none
    old = newest = none
    if by != "creator":
        newest = _newest(table, videos_uri, fraction)
        old = ~newest & table["posted_at"].notna().to_numpy()
    if by == "time":
        return newest, ~newest & ~old
    creators = _by_creator(table, videos_uri, fraction, seed)
    if by == "creator":
        return creators, none
    held_out, training = creators & newest, ~creators & old
    if not held_out.any():
        raise Refused(
            f"{videos_uri}: none of the held-out creators posted after the others' videos end; use --split creator or "
            "--split time, or a larger --held-out-fraction"
        )
    return held_out, ~held_out & ~training


def _newest(table: pd.DataFrame, videos_uri: str, fraction: float) -> np.ndarray:
    posted = pd.to_datetime(table["posted_at"], utc=True)
    border = posted.quantile(1 - fraction, interpolation="lower")
    newest = (posted > border).to_numpy()
    if not newest.any():
        raise Refused(
            f"{videos_uri}: --split by time needs posted_at, and videos posted after {border}; it has "
            f"{posted.nunique()} different times"
        )
    return newest


def _by_creator(table: pd.DataFrame, videos_uri: str, fraction: float, seed: int) -> np.ndarray:
    creator = table["creator_id"].reset_index(drop=True).astype(object)
    unknown = creator.isna()  # each is a creator of its own
    creator[unknown] = [f"\0{i}" for i in np.flatnonzero(unknown)]
    videos = creator.value_counts().sort_index()
    if len(videos) < 2:
        raise Refused(
            f"{videos_uri}: all videos are of one creator, so no creator can be held out to judge the model; "
            "add videos of other creators"
        )
    wanted, taken, chosen = fraction * len(table), 0, set()
    for name in videos.index[np.random.default_rng(seed).permutation(len(videos))]:
        if taken + videos[name] <= wanted:
            chosen.add(name)
            taken += videos[name]
    return creator.isin(chosen or {videos.idxmin()}).to_numpy()
