"""How far an engagement map can be trusted: is it about this model, and does what it points at matter?

Kernel code: imports neither Ray nor MLflow.
"""

import copy
import io
from collections.abc import Callable, Iterator, Sequence

import av
import cv2
import numpy as np
import scipy.stats
import torch
from torch import nn

from scoring.saliency import EngagementMapper
from scoring.settings import FaithfulnessConfig
from training.models import EngagementModel

Predict = Callable[[Sequence[np.ndarray]], list[float]]
REENCODED_CRF = 32
"""H.264 constant rate factor: what a platform's low rung looks like"""


def perturbed(
    predict: Predict, clip: np.ndarray, E: np.ndarray, config: FaithfulnessConfig
) -> dict[tuple[str, str, str], float]:
    """What deleting and inserting tubelets (a second of a square) does to the prediction (Petsiuk et al. 2018, RISE).

    clip: uint8 (S, H, W, 3); E: float (S, H, W) -> (deletion or insertion, infill, order) -> area: the mean, over
    shares of the tubelets, of how far the prediction is from that of the whole clip, in the prediction's unit. Tubelets
    go in order of E, of nearness to the frame's centre, and at random. A map that points at what matters has a larger
    area of deletion and a smaller one of insertion than a random order. E has no sign, so neither have distances.
    """
    cells = tubelets(clip.shape[:3], config.tubelet_pixels)
    count = int(cells.max()) + 1
    shares = np.arange(1, config.levels) / config.levels
    ranks = dict(_orders(E, cells, config))
    variants, names = [clip], [("", "", "")]
    for infill, hidden in infills(clip).items():
        for order, rank in ranks.items():
            for share in shares:
                chosen = (rank < share * count)[cells][..., None]
                variants += [np.where(chosen, hidden, clip), np.where(chosen, clip, hidden)]
                names += [("deletion", infill, order), ("insertion", infill, order)]
    whole, *moved = predict(variants)
    areas: dict[tuple[str, str, str], list[float]] = {}
    for (what, infill, order), prediction in zip(names[1:], moved, strict=True):
        areas.setdefault((what, infill, order.split()[0]), []).append(abs(prediction - whole))
    return {name: float(np.mean(values)) for name, values in areas.items()}


def gains(areas: dict[tuple[str, str, str], float], over: str = "random") -> dict[tuple[str, str], float]:
    """(deletion or insertion, infill) -> how much better E's order is than another one; above 0 is better."""
    found = {}
    for (what, infill, order), area in areas.items():
        if order == "E":
            other = areas[what, infill, over]
            found[what, infill] = area - other if what == "deletion" else other - area
    return found


def tubelets(shape: tuple[int, ...], pixels: int) -> np.ndarray:
    """int (S, H, W), which tubelet every pixel is in."""
    seconds, rows, columns = np.indices(shape, sparse=True)
    down, across = -(-shape[1] // pixels), -(-shape[2] // pixels)
    return (seconds * down + rows // pixels) * across + columns // pixels


def infills(clip: np.ndarray) -> dict[str, np.ndarray]:
    """What stands where something was taken out: the clip's mean colour, or the blurred frame."""
    mean = np.broadcast_to(clip.mean(axis=(0, 1, 2)).round().astype(np.uint8), clip.shape)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), clip.shape[1] / 8) for frame in clip])
    return {"mean colour": mean, "blur": blurred}


def randomised(model: EngagementModel, seed: int = 0) -> Iterator[tuple[str, EngagementModel]]:
    """Copies of a model with ever more of its weights drawn anew, from the last stage to the first (Adebayo et al.,
    "Sanity Checks for Saliency Maps", 2018): the stage that was added, and the copy.

    model: as loaded, its batch norms not folded.
    """
    copied = copy.deepcopy(model)
    for name, stage in reversed(list(copied.network.named_children())):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for module in stage.modules():
                if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)):
                    module.reset_parameters()
        yield name, copy.deepcopy(copied)


def stability(mapper: EngagementMapper, clip: np.ndarray) -> dict[str, float]:
    """Spearman of E with itself where the clip is encoded again, moved by a pixel, and mirrored (E moved back)."""
    again = reencoded(clip)
    moved = np.pad(clip, ((0, 0), (1, 0), (1, 0), (0, 0)), "edge")[:, :-1, :-1]
    mirrored = np.ascontiguousarray(clip[:, :, ::-1])
    (E, _), (E_again, _), (E_moved, _), (E_mirrored, _) = mapper([clip, again, moved, mirrored])
    return {
        "encoded again": alike(E, E_again),
        "moved by a pixel": alike(E[:, 1:-1, 1:-1], E_moved[:, 2:, 2:]),
        "mirrored": alike(E, E_mirrored[:, :, ::-1]),
    }


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman of two maps over pixels and seconds; 0 where one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic)


def reencoded(clip: np.ndarray, crf: int = REENCODED_CRF) -> np.ndarray:
    """uint8 (S, H, W, 3), H and W even, through H.264 and back."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = clip.shape[1], clip.shape[2], "yuv420p"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _orders(E: np.ndarray, cells: np.ndarray, config: FaithfulnessConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rank of every tubelet, the first to go has 0."""
    count = int(cells.max()) + 1
    sizes = np.bincount(cells.ravel(), minlength=count)
    random = np.random.default_rng(config.seed)
    breaking_ties = random.permutation(count)
    strength = np.bincount(cells.ravel(), E.ravel(), minlength=count) / sizes
    yield "E", _ranked(-strength, breaking_ties)
    rows, columns = (np.linspace(-1, 1, n) for n in E.shape[1:])
    from_centre = np.broadcast_to(np.hypot(rows[:, None], columns), E.shape)
    nearness = np.bincount(cells.ravel(), from_centre.ravel(), minlength=count) / sizes
    yield "centre", _ranked(nearness, breaking_ties)
    for i in range(config.random_orders):
        yield f"random {i}", random.permutation(count)


def _ranked(values: np.ndarray, breaking_ties: np.ndarray) -> np.ndarray:
    rank = np.empty(len(values), int)
    rank[np.lexsort((breaking_ties, values))] = np.arange(len(values))
    return rank
