"""What the engagement map costs a CPU core, beside Captum on the same weights and clips, in one run.

    python -m benchmarks.saliency
    python -m benchmarks.saliency --architectures r3d_18 --seconds 30 --clips 2

Saliency is the method gradient, LayerGradientXActivation's sum over channels hires_cam, the default. GFLOP/s are by the
operations that PyTorch counts in the same passes by direct convolutions, beside what a large matrix product
reaches here in fp32, and in bf16 where there are units for it. One thread. A time is the best of ``REPEATS`` runs, user
and system time of the process; the ways take turns.
"""

import argparse
import contextlib
import copy
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from captum.attr import LayerGradientXActivation, Saliency
from rich.console import Console
from rich.table import Table

from benchmarks.cpu_time import cpu_model
from benchmarks.gpu import flops_a_clip
from scoring.attribution import METHODS, enlarged
from scoring.saliency import CPU_FRAMES_A_BATCH, EngagementMapper
from scoring.settings import MapConfig, unblurred
from training.models import EngagementModel, ModelSpec, for_inference, has_bf16_units, to_input
from training.networks import ARCHITECTURES

REPEATS = 3
MATRIX = 2048


def compared(architecture: str, clips: list[np.ndarray]) -> Table:
    """Core-seconds a minute of video, and how well each way's maps correlate with those of Captum's same method."""
    torch.manual_seed(0)
    plain = EngagementModel(ModelSpec(architecture=architecture)).eval()
    direct = for_inference(copy.deepcopy(plain))
    mappers = {
        method: EngagementMapper(for_inference(copy.deepcopy(plain)), config=unblurred(method))
        for method in ("gradient", "hires_cam")
    }
    saliency, activation = Saliency(plain), LayerGradientXActivation(plain, plain.network.first_maps())  # pyright: ignore
    at_once = max(1, CPU_FRAMES_A_BATCH // len(clips[0]))
    batches = [clips[i : i + at_once] for i in range(0, len(clips), at_once)]

    def by_captum(attribute: Callable[[torch.Tensor], np.ndarray]) -> list[np.ndarray]:
        # one video after another, as a plain script does
        return [attribute(to_input(torch.from_numpy(clip[None])).contiguous().requires_grad_(True)) for clip in clips]

    def slopes(pixels: torch.Tensor) -> np.ndarray:
        return saliency.attribute(pixels, abs=True).amax(dim=1)[0].numpy()

    def raising(pixels: torch.Tensor) -> np.ndarray:
        signed = activation.attribute(pixels).detach()
        if architecture == "frame_conv3d":
            signed = signed.transpose(0, 1)[None]
        return enlarged(signed.sum(dim=1)[0], (pixels.shape[2], *pixels.shape[3:])).relu().numpy()

    def by_direct_convolutions(method: str) -> list[np.ndarray]:
        fp32, config = contextlib.nullcontext(), MapConfig()
        return [
            E
            for batch in batches
            for E in METHODS[method](direct, torch.from_numpy(np.stack(batch)), None, fp32, config)[0].relu().numpy()
        ]

    def as_it_is(method: str) -> list[np.ndarray]:
        return [E for batch in batches for E, _ in mappers[method](batch)]

    kind = "bf16" if mappers["gradient"].bf16 else "Winograd"
    compared_with = {"gradient": ("Captum Saliency", slopes), "hires_cam": ("Captum LayerGradientXActivation", raising)}
    ways: dict[str, Callable[[], list[np.ndarray]]] = {}
    about: dict[str, tuple[str, str]] = {}
    for method, (name, attribute) in compared_with.items():
        own = {
            f"{name}, fp32": partial(by_captum, attribute),
            f"{method}, direct convolutions, fp32": partial(by_direct_convolutions, method),
            f"{method}, as it is ({kind})": partial(as_it_is, method),
        }
        ways |= own
        about |= dict.fromkeys(own, (method, f"{name}, fp32"))
    maps = {name: np.concatenate([E.ravel() for E in way()]) for name, way in ways.items()}
    spent = dict.fromkeys(ways, float("inf"))
    for _ in range(REPEATS):
        for name, way in ways.items():
            started = time.process_time()
            way()
            spent[name] = min(spent[name], time.process_time() - started)
    seconds = sum(map(len, clips))
    flops = {method: len(clips) * flops_a_clip(direct, len(clips[0]), method) for method in compared_with}
    table = Table(title=f"{architecture}: {len(clips)} clips of {len(clips[0])} s, one thread")
    for column in ("", "core-s a minute", "Captum / this", "GFLOP/s", "correlation with Captum's"):
        table.add_column(column, justify="left" if not column else "right")
    for name, (method, base) in about.items():
        agreement = float(np.corrcoef(maps[base], maps[name])[0, 1])
        figures = (spent[name] / seconds * 60, spent[base] / spent[name])
        speed = flops[method] / spent[name] / 1e9
        table.add_row(name, *[f"{figure:.2f}" for figure in figures], f"{speed:.0f}", f"{agreement:.6f}")
    return table


def matrix_gflops(dtype: torch.dtype) -> float:
    """GFLOP/s of a core in a large matrix product, the best of a few."""
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    spent = float("inf")
    for _ in range(REPEATS):
        started = time.process_time()
        torch.mm(a, b)
        spent = min(spent, time.process_time() - started)
    return 2 * MATRIX**3 / spent / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 30], help="lengths of clips (default 10 30)")
    parser.add_argument("--clips", type=int, default=3, help="how many clips (default 3)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    kinds = [torch.float32] + [torch.bfloat16] * has_bf16_units(torch.device("cpu"))
    reached = ", ".join(f"{str(kind).removeprefix('torch.')} {matrix_gflops(kind):.0f}" for kind in kinds)
    console.print(f"{cpu_model()}; a matrix product reaches GFLOP/s of {reached}")
    rng = np.random.default_rng(0)
    for architecture in arguments.architectures:
        for seconds in arguments.seconds:
            clips = [rng.integers(0, 256, (seconds, 112, 112, 3), dtype=np.uint8) for _ in range(arguments.clips)]
            console.print(compared(architecture, clips))


if __name__ == "__main__":
    main()
