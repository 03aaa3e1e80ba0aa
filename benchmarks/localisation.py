"""Whether E lies on what drives engagement: every method on a made-up world, whose engagement depends on one known
moving element; tables in docs/saliency.md.

    python -m benchmarks.localisation
    python -m benchmarks.localisation --videos 416 --epochs 15 --methods hires_cam gradient    # a better model
    python -m benchmarks.localisation --checkpoint model.pt --world DIR    # a model that was trained on that world

Figures are of videos by creators that training has not seen (PE: of all), with 95% over resampled creators.

pointing    share of the seconds with the element in which E's maximum lies within 3 pixels of it (of 112: what 15 are
            of the 500 of the classic game's images)
AUC         of telling the element's pixels and seconds from all others
less rim    the same without the 3 pixels around the element
mass        share of E on the element
/distractor E a pixel on the element over E a pixel on the equally striking distractor
over time   Spearman of E's mean in each second with the element's planted amount there
PE          Spearman of the PE score, with the true product mask, with the true one
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import scipy.stats
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import roc_auc_score

from benchmarks.cpu_time import cpu_model
from benchmarks.engagement import trained
from catalog.tables import read_videos
from catalog.video import iter_frames
from catalog.world import GRID, WorldConfig, WorldPaths, make_world, read_masks
from catalog.world.masks import Masks
from jobs.demo import DemoConfig
from scoring.attribution import METHODS
from scoring.pe import pe_scores
from scoring.saliency import EngagementMapper, finished
from scoring.settings import MapConfig, unblurred
from training.decode import network_input
from training.models import for_inference, load_checkpoint
from training.settings import SplitConfig, TargetConfig
from training.splits import held_out_ids

TOLERANCE_PX = 3
FIGURES = ("pointing", "AUC", "less rim", "mass", "/distractor", "over time")


def centre(clip: np.ndarray) -> np.ndarray:
    from_middle = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, GRID)] * 2))
    return np.broadcast_to(np.exp(-2 * from_middle**2), clip.shape[:3])


def edges(clip: np.ndarray) -> np.ndarray:
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in clip]
    return np.stack([np.hypot(cv2.Sobel(f, -1, 1, 0), cv2.Sobel(f, -1, 0, 1)) for f in grey])


BASELINES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform": lambda clip: np.ones(clip.shape[:3]),
    "centre": centre,
    "edges (Sobel)": edges,
}


def variants(methods: Sequence[str]) -> dict[str, MapConfig]:
    found = {method: unblurred(method) for method in METHODS}
    for pixels, seconds in ((1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (2.0, 0.5), (3.0, 0.5), (4.0, 0.5), (3.0, 1.0)):
        name = f"{MapConfig.method}, {pixels:g} px" + (f", {seconds:g} s" if seconds else "")
        found[name] = MapConfig(smooth_pixels=pixels, smooth_seconds=seconds)
    for method in ("gradient", "smoothgrad", "integrated_gradients", "grad_x_input"):
        found[f"{method}, 1 px"] = MapConfig(method, smooth_pixels=1.0, smooth_seconds=0.0)
        found[f"{method}, as the default"] = MapConfig(method)
    return {name: config for name, config in found.items() if config.method in methods}


def judged(E: np.ndarray, masks: Masks, weight: np.ndarray) -> dict[str, float]:
    seconds = np.flatnonzero(masks.element.any(axis=(1, 2)))
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * TOLERANCE_PX + 1,) * 2)
    reached = np.stack([cv2.dilate(mask.astype(np.uint8), near).astype(bool) for mask in masks.element])
    # of a map with several maxima: the chance of a hit
    hits = [reached[second][E[second] == E[second].max()].mean() for second in seconds]
    clear = masks.element | ~reached
    planted = weight * masks.element.mean(axis=(1, 2))
    over_time = E.mean(axis=(1, 2))
    moves = np.ptp(planted) > 0 and np.ptp(over_time) > 1e-9
    some = masks.element.any() and not masks.element.all()
    apart = masks.distractor.any() and E[masks.distractor].any()
    return {
        "pointing": float(np.mean(hits)) if hits else np.nan,
        "AUC": float(roc_auc_score(masks.element.ravel(), E.ravel())) if some else np.nan,
        "less rim": float(roc_auc_score(masks.element[clear], E[clear])) if some else np.nan,
        "mass": float(E[masks.element].sum() / E.sum()) if some and E.any() else np.nan,
        "/distractor": float(E[masks.element].mean() / E[masks.distractor].mean()) if some and apart else np.nan,
        "over time": float(scipy.stats.spearmanr(planted, over_time).statistic) if moves else np.nan,
    }


def interval(values: pd.Series, creators: pd.Series, statistic: Callable = np.mean) -> str:
    """A figure of videos and its 95% over resampled creators."""
    known = values.notna()
    if not known.any():
        return "-"
    own = values[known].groupby(creators[known]).mean().to_numpy()
    if np.ptp(own) == 0:
        return f"{own[0]:.2f}"
    drawn = scipy.stats.bootstrap((own,), statistic, n_resamples=2000, method="percentile", rng=0)
    low, high = drawn.confidence_interval
    return f"{statistic(own):.2f} ({low:.2f} to {high:.2f})"


def table_of(world: WorldPaths, checkpoint: bytes, methods: Sequence[str]) -> Table:
    videos = read_videos(str(world.videos))
    columns = videos.select(["video_id", "video_uri", "creator_id"]).to_pandas()
    rows = pd.read_parquet(world.truth).merge(columns)
    unseen = set(held_out_ids(videos, str(world.videos), TargetConfig(), SplitConfig()))
    model = EngagementMapper(for_inference(load_checkpoint(checkpoint))).model
    found = []
    for row in track(rows.to_dict("records"), "mapping"):
        clip = np.stack([network_input(frame, GRID) for frame in iter_frames(row["video_uri"])])
        masks = read_masks(world.folder, row["video_id"])
        maps = {name: made(clip) for name, made in BASELINES.items()}
        shown, fp32 = torch.from_numpy(clip[None]), contextlib.nullcontext()
        plain = {method: METHODS[method](model, shown, None, fp32, MapConfig()) for method in methods}
        for name, config in variants(methods).items():
            maps[name] = finished(plain[config.method][0], shown, None, config)[0].numpy()
        for name, E in maps.items():
            figures = judged(E, masks, np.asarray(row["element_weight"])) if row["video_id"] in unseen else {}
            pe = pe_scores(E, masks.product).pe_score
            about = {"map": name, "creator_id": row["creator_id"], "pe_true": row["pe_true"]}
            found.append(about | {"unseen": row["video_id"] in unseen, "pe": pe} | figures)
    every = pd.DataFrame(found)
    held_out = every[every["unseen"]]
    title = f"{held_out['map'].value_counts().iloc[0]} held-out of {len(rows)} made-up videos. {cpu_model()}"
    table = Table(title=title)
    for column in ("map", *FIGURES, "PE"):
        table.add_column(column)
    for name in every["map"].unique():
        own = held_out[held_out["map"] == name]
        whole = every[every["map"] == name]
        ranked = whole["pe"].nunique() > 1
        rank = scipy.stats.spearmanr(whole["pe"], whole["pe_true"]).statistic if ranked else np.nan
        cells = (interval(own[f], own["creator_id"], np.median if f == "/distractor" else np.mean) for f in FIGURES)
        table.add_row(name, *cells, f"{rank:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=DemoConfig.videos, help="made-up videos")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up world")
    parser.add_argument("--epochs", type=int, default=DemoConfig.epochs, help="that the model is trained for")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="default: all")
    parser.add_argument("--checkpoint", type=Path, help="a model, with --world")
    parser.add_argument("--world", type=Path, help="the world it was trained on")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) != (arguments.world is None):
        parser.error("--checkpoint and --world go together: a model, and the world that it was trained on")
    console = Console(width=170)
    with tempfile.TemporaryDirectory() as name:
        if arguments.checkpoint is not None:
            world, checkpoint = WorldPaths(arguments.world), arguments.checkpoint.read_bytes()
        else:
            shape = WorldConfig(seconds=DemoConfig.seconds, fps=DemoConfig.fps)
            world = make_world(Path(name, "world"), videos=arguments.videos, seed=arguments.seed, config=shape)
            checkpoint = trained(world, Path(name), 0, [], arguments.epochs)
        console.print(table_of(world, checkpoint, arguments.methods))


if __name__ == "__main__":
    main()
