"""How well engagement maps use a GPU; needs only torch, numpy and OpenCV. Tables in docs/gpu.md.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --architecture mc3_18 --clips 512 --frames 30
    python -m benchmarks.gpu --checkpoint model.pt        # a trained model: PE and maps as they will be
    python -m benchmarks.gpu --device cpu                 # the same figures of a CPU, in one process

peak        what a large matrix product reaches in the precision of the maps; the share of it is by the floating-point
            operations that PyTorch counts in the forward and backward passes
fp32        all of its bits (no TF32), which is what a device that stays with fp32 gets
mixed       clips of half to all of the frames, padded in batches; fewer seconds of video than the others
memory      the most that mapping takes at once
busy        kernels' time over wall time, by PyTorch's profiler, while clips come from the host's memory
agreement   Spearman over clips of the PE score by bf16 maps with that by fp32 maps, on a made-up product, and of pixels
            (bf16 is measured wherever there are units for it, also where the check at start-up refuses this model)
compiled    seconds of a batch's forward and backward passes over those by torch.compile, after it has warmed up
"""

import argparse
import copy
import platform
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from scoring.attribution import slopes_of
from scoring.pe import pe_scores
from scoring.saliency import EngagementMapper, full_fp32
from scoring.settings import MapConfig
from training.models import (
    EngagementModel,
    ModelSpec,
    for_inference,
    has_bf16_units,
    load_checkpoint,
    to_input,
)
from training.networks import ARCHITECTURES

SIZE = 112
CLIPS = {"cuda": 512, "cpu": 8}
MATRIX = {"cuda": 8192, "cpu": 4096}
ROUNDS = 5


def made_up_clip(frames: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A patterned box that moves over a blurred background: uint8 (S, H, W, 3), and its mask (S, H, W)."""
    background = cv2.resize(
        random.integers(0, 256, (9, 9, 3), dtype=np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC
    )
    side = int(random.integers(20, 50))
    box = cv2.resize(random.integers(0, 256, (6, 6, 3), dtype=np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    start, end = random.integers(0, SIZE - side, (2, 2))
    clip, mask = np.repeat(background[None], frames, axis=0), np.zeros((frames, SIZE, SIZE), bool)
    for second, part in enumerate(np.linspace(0, 1, frames)):
        y, x = (start + part * (end - start)).astype(int)
        clip[second, y : y + side, x : x + side] = box
        mask[second, y : y + side, x : x + side] = True
    return clip, mask


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """The median of a few rounds, after one to warm up."""
    taken = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken[1:]))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    n = MATRIX[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / seconds_of(lambda: a @ b, device)


def flops_a_clip(model: EngagementModel, frames: int, method: str) -> int:
    """hires_cam differentiates no further back than the first convolution's maps, gradient down to the pixels."""
    first = model.network.first_maps()  # pyright: ignore[reportCallIssue]
    cut = first.register_forward_hook(lambda module, given, maps: maps.detach().requires_grad_(True))
    if method == "gradient":
        cut.remove()
    pixels = torch.zeros((1, 3, frames, SIZE, SIZE), device=model.mean.device, requires_grad=method == "gradient")
    with FlopCounterMode(display=False) as counter:
        model(pixels).sum().backward()  # the counter's hooks do not take autograd.grad
    cut.remove()
    return counter.get_total_flops()


def busy_share(mapper: EngagementMapper, clips: list[np.ndarray]) -> float:
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        begun = time.perf_counter()
        mapper(clips)
        wall = time.perf_counter() - begun
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 / wall


def compiled_gain(model: EngagementModel, clips: list[np.ndarray], bf16: bool) -> float:
    device = model.mean.device
    pixels = to_input(torch.from_numpy(np.stack(clips)).to(device))
    compiled = copy.deepcopy(model)
    compiled.network = torch.compile(compiled.network)  # pyright: ignore
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    own, theirs = (seconds_of(lambda m=m: slopes_of(m, pixels, None, autocast), device) for m in (model, compiled))
    return own / theirs


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--architecture", default="r3d_18", choices=list(ARCHITECTURES))
    parser.add_argument("--checkpoint", type=Path, help="of this model; default: untrained")
    parser.add_argument("--method", default=MapConfig.method, choices=("hires_cam", "gradient"))
    parser.add_argument("--clips", type=int, help="default: 512, on a CPU 8")
    parser.add_argument("--frames", type=int, default=15, help="sampled frames a clip")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that PyTorch can use here; --device cpu measures the CPU")
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    made = [made_up_clip(arguments.frames, random) for _ in range(arguments.clips or CLIPS[device.type])]
    clips = [clip for clip, _ in made]
    spec = ModelSpec(architecture=arguments.architecture, input_size=SIZE)
    model = EngagementModel(spec) if arguments.checkpoint is None else load_checkpoint(arguments.checkpoint)
    if model.spec.input_size != SIZE:
        parser.error(f"--checkpoint {arguments.checkpoint} takes {model.spec.input_size} pixels, expected {SIZE}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}; {model.spec.architecture}, "
          f"{arguments.method}, {len(clips)} clips of {arguments.frames} frames, {SIZE} px")  # fmt: skip
    maps = MapConfig(arguments.method)
    exact = EngagementMapper(for_inference(copy.deepcopy(model)), arguments.device, maps, exact=True)
    mapper = EngagementMapper(for_inference(copy.deepcopy(model)), arguments.device, maps)
    refused = has_bf16_units(device) and not mapper.bf16
    mapper.bf16 |= refused
    way, precision = ("bf16", torch.bfloat16) if mapper.bf16 else ("fp32", torch.float32)
    if refused:
        print("the check at start-up refuses bf16 for this model; measured all the same")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken = seconds_of(lambda: mapper(clips), device, rounds=3)
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB; "
              f"GPU busy {busy_share(mapper, clips):.0%} of the time")  # fmt: skip
    with full_fp32():
        peak, single = peak_flops(device, precision), peak_flops(device, torch.float32)
    flops = flops_a_clip(exact.model, arguments.frames, arguments.method)
    work = flops * len(clips) / taken
    print(f"{way}, batches of up to {mapper.max_frames} frames: {len(clips) / taken:.1f} clips a second, "
          f"{len(clips) * arguments.frames / taken:.0f} frames a second")  # fmt: skip
    print(f"maps: {work / 1e12:.2f} TFLOP/s, {work / peak:.0%} of {way}'s peak in a matrix product, "
          f"{peak / 1e12:.2f} TFLOP/s")  # fmt: skip
    mixed = [clip[: random.integers(arguments.frames // 2, arguments.frames + 1) or 1] for clip in clips]
    padded = seconds_of(lambda: mapper(mixed), device, rounds=3)
    print(f"mixed lengths: {sum(map(len, mixed)) / padded:.0f} frames a second")
    few = clips[: max(1, len(clips) // 4)]
    whole = seconds_of(lambda: exact(few), device, rounds=2) / len(few)
    print(f"fp32 (no TF32): {1 / whole:.1f} clips a second, {whole / (taken / len(clips)):.2f} times the cost, "
          f"{flops / whole / single:.0%} of fp32's peak, {single / 1e12:.2f} TFLOP/s")  # fmt: skip
    own, theirs = ([E for E, _ in m(clips)] for m in (mapper, exact))
    pe = [
        [pe_scores(E, mask).pe_score or 0.0 for E, (_, mask) in zip(found, made, strict=True)]
        for found in (own, theirs)
    ]
    pixels = [np.concatenate([E.ravel() for E in found]) for found in (own, theirs)]
    print(f"agreement with fp32: PE Spearman {spearman(*map(np.array, pe)):.5f}, "
          f"pixels' correlation {np.corrcoef(pixels[0], pixels[1])[0, 1]:.6f}")  # fmt: skip
    batch = clips[: max(1, mapper.max_frames // arguments.frames)]
    print(f"torch.compile: {compiled_gain(mapper.model, batch, mapper.bf16):.2f} times as fast after warm-up")


if __name__ == "__main__":
    main()
