"""Figures for papers: the mean E, P and PE of a catalogue over space and over time, as Figure 2 of Yang, Zhang & Zhang
(2025) shows them."""

import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from scoring.pe import rasterised
from views.maps import PALETTE, quads_of
from views.page import RC
from views.timeline import COLOURS, PER_SECOND

FORMATS = ("png", "svg")
PNG_DPI = 300
MIN_VIDEOS = 3
"""that must last so long for a second to be shown"""
Z_95 = 1.959964
PANELS = ("E, attention", "P, product", "PE")


@dataclasses.dataclass
class MeanMaps:
    """Means over videos, each of which counts once however long it is: float (3, H, W) of E, P and E * P."""

    total: np.ndarray | float = 0.0
    videos: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """row: of schemas.MAPS, of a video with a product. E is scaled to 0..1 within the video; P is its quads."""
        shape = (row["seconds"], row["height"], row["width"])
        e = np.frombuffer(row["e_uint8"], np.uint8).reshape(shape) / 255
        p = rasterised(quads_of(row["product_quads"], shape[0]), shape[1], shape[2])
        self.total = self.total + np.stack([e.mean(axis=0), p.mean(axis=0), (e * p).mean(axis=0)])
        self.videos += 1

    def mean(self) -> np.ndarray:
        return np.asarray(self.total) / self.videos


def mean_maps(rows: Iterable[Mapping[str, Any]], scores: pa.Table) -> MeanMaps:
    """rows: of schemas.MAPS; those of videos without a product, which have no PE, are passed over."""
    with_pe = set(scores.filter(pc.is_valid(scores["pe_score"]))["video_id"].to_pylist())
    means = MeanMaps()
    for row in rows:
        if row["video_id"] in with_pe:
            means.add(row)
    return means


def space_figure(means: MeanMaps, aspect: float) -> dict[str, bytes]:
    """aspect: height of the pictures in times of their width. Format -> the figure's file."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.2, 2.2 * min(aspect, 2.0) + 0.8), layout="constrained")
        for axes, title, mean in zip(figure.subplots(1, 3), PANELS, means.mean(), strict=True):
            image = axes.imshow(mean, cmap=PALETTE, vmin=0, extent=(0, 1, 1, 0), aspect=aspect, interpolation="nearest")
            axes.set(title=title, xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            figure.colorbar(image, ax=axes, location="bottom", shrink=0.9)
        figure.supxlabel(f"share of the picture’s width; mean of {means.videos:,} videos", fontsize=9)
        return _files(figure)


def time_figure(scores: pa.Table, samples_per_second: float) -> dict[str, bytes] | None:
    """Means second by second with 95% of the mean's normal distribution; None where no video has a PE."""
    scores = scores.filter(pc.is_valid(scores["pe_score"]))
    means = over_time(scores, samples_per_second)
    if means.empty:
        return None
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(4.8, 4.4), layout="constrained")
        for axes, name in zip(figure.subplots(3, sharex=True), PER_SECOND, strict=True):
            mean, error = means[name, "mean"], Z_95 * means[name, "sem"]
            axes.plot(means.index, mean, color=COLOURS[name])
            axes.fill_between(means.index, mean - error, mean + error, color=COLOURS[name], alpha=0.2, linewidth=0)
            axes.set(ylim=(0, None), ylabel=name.removesuffix("_per_second").upper())
        axes.set_xlabel(
            f"second; mean of {int(means['e_per_second', 'count'].iloc[0]):,} videos at first, 95% intervals"
        )
        return _files(figure)


def over_time(scores: pa.Table, samples_per_second: float) -> pd.DataFrame:
    """Index: second; columns (PER_SECOND, mean | sem | count), as far as ``MIN_VIDEOS`` videos last."""
    lists = [scores[name].combine_chunks() for name in PER_SECOND]
    values: dict[str, Any] = {name: pc.list_flatten(column) for name, column in zip(PER_SECOND, lists, strict=True)}
    lengths = pc.list_value_length(lists[0]).to_numpy(zero_copy_only=False)
    place = np.concatenate([np.arange(n) for n in lengths]) if len(lengths) else np.empty(0)
    frame = pd.DataFrame({name: column.to_numpy(zero_copy_only=False) for name, column in values.items()})
    found = frame.groupby(place / samples_per_second)[PER_SECOND].agg(["mean", "sem", "count"])
    return found[found["e_per_second", "count"] >= MIN_VIDEOS]


def _files(figure: Figure) -> dict[str, bytes]:
    files = {}
    for kind in FORMATS:
        sink = io.BytesIO()
        figure.savefig(sink, format=kind, dpi=PNG_DPI, metadata={"Date": None} if kind == "svg" else None)
        files[kind] = sink.getvalue()
    return files
