"""How far an engagement map can be trusted: is it about this model, and does what it points at matter?

Kernel code: imports neither Ray nor MLflow.
"""

import collections
import copy
import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence

import av
import cv2
import numpy as np
import scipy.stats
import torch
from torch import nn

from scoring.evidence import SHUFFLED
from scoring.pe import pe_scores
from scoring.saliency import EngagementMapper
from scoring.settings import FaithfulnessConfig, MapConfig
from training.models import EngagementModel, for_inference

Predict = Callable[[Sequence[np.ndarray]], list[float]]
BORDER = 1 / 7
"""of the frame on each side, 16 of 112 pixels"""
REENCODED_CRF = 32
"""H.264 constant rate factor: what a platform's low rung looks like"""


class Examiner:
    """Puts the maps of one model to the test, clip by clip.

    model: as loaded, its batch norms not folded; left as it is. ``shuffled``: the same network trained on shuffled
    labels. ``others``: models of the same input size that were trained alike, such as from other seeds.
    Raises ValueError as ``EngagementMapper`` does.
    """

    def __init__(
        self,
        model: EngagementModel,
        device: str,
        maps: MapConfig,
        config: FaithfulnessConfig,
        shuffled: EngagementModel | None = None,
        others: Sequence[EngagementModel] = (),
    ):
        self.model, self.device, self.maps, self.config = model, device, maps, config
        self.mapper = self._mapper(model)
        compared = {} if shuffled is None else {SHUFFLED: shuffled}
        compared |= {f"model/{i}": other for i, other in enumerate(others)}
        self.compared = {name: self._mapper(other) for name, other in compared.items()}

    def __call__(self, clips: Sequence[np.ndarray], products: Sequence[np.ndarray | None]) -> list[dict[str, float]]:
        """clips: uint8 (S_i, H, W, 3) at the model's input size; products: bool (S_i, H, W) each, or None.

        Of a clip longer than a window only the first window is looked at.
        -> a dictionary of figures for each clip: ``deletion/INFILL/ORDER/LEVEL`` and ``insertion/...`` as of
        ``perturbation_curves``; Spearman of E with another map: ``randomised/STAGE``, ``shuffled``, ``model/NUMBER``
        and, ``inside`` of the frame, ``randomised_inside/STAGE``, ``shuffled_inside``, ``model_inside/NUMBER``;
        ``stability/CHANGE``, all NaN where a map is constant; the PE score by E and by other models' E: ``pe/own``,
        ``pe/NUMBER``.
        """
        clips = [clip[: self.maps.window_frames] for clip in clips]
        products = [P if P is None else P[: self.maps.window_frames] for P in products]
        maps = [E for E, _ in self.mapper(clips)]
        found: list[dict[str, float]] = []
        for clip, E in zip(clips, maps, strict=True):
            curves = perturbation_curves(self.mapper.predict, clip, E, self.config)
            figures = {f"{name}/{level}": d for name, curve in curves.items() for level, d in enumerate(curve, 1)}
            found.append(figures | {f"stability/{name}": v for name, v in stability(self.mapper, clip, E).items()})
        for name, mapper in [self.all_anew] if self.config.brief else self._anew():
            anew = mapper(clips)
            self._compare(f"randomised/{name}", anew, maps, found)
            self._compare(f"randomised_inside/{name}", anew, maps, found, inside)
        for name, mapper in self.compared.items():
            self._compare(name, theirs := mapper(clips), maps, found)
            kind, slash, number = name.partition("/")
            self._compare(f"{kind}_inside{slash}{number}", theirs, maps, found, inside)
            if name != SHUFFLED:
                self._score(f"pe/{name.removeprefix('model/')}", [E for E, _ in theirs], products, found)
        self._score("pe/own", maps, products, found)
        return found

    @functools.cached_property
    def all_anew(self) -> tuple[str, EngagementMapper]:
        """The last of ``_anew``, kept for every clip to come; all of them would take too much memory."""
        (last,) = collections.deque(randomised(self.model, self.config.faithfulness_seed), maxlen=1)
        return last[0], self._mapper(last[1])

    def _anew(self) -> Iterator[tuple[str, EngagementMapper]]:
        for name, copied in randomised(self.model, self.config.faithfulness_seed):
            yield name, self._mapper(copied)

    def _mapper(self, model: EngagementModel) -> EngagementMapper:
        return EngagementMapper(for_inference(copy.deepcopy(model)), self.device, self.maps)

    @staticmethod
    def _compare(
        name: str,
        theirs: list[tuple[np.ndarray, float]],
        own: list[np.ndarray],
        found: list[dict[str, float]],
        part: Callable[[np.ndarray], np.ndarray] = lambda E: E,
    ) -> None:
        for (other, _), E, figures in zip(theirs, own, found, strict=True):
            figures[name] = alike(part(E), part(other))

    @staticmethod
    def _score(
        name: str, maps: list[np.ndarray], products: Sequence[np.ndarray | None], found: list[dict[str, float]]
    ) -> None:
        for E, P, figures in zip(maps, products, found, strict=True):
            score = pe_scores(E, P).pe_score
            if score is not None:
                figures[name] = score


def perturbation_curves(
    predict: Predict, clip: np.ndarray, E: np.ndarray, config: FaithfulnessConfig
) -> dict[str, np.ndarray]:
    """What deleting and inserting tubelets (a second of a square) does to the prediction (Petsiuk et al. 2018, RISE).

    clip: uint8 (S, H, W, 3); E: float (S, H, W) -> ``deletion`` or ``insertion``/INFILL/ORDER -> (levels - 1,): how far
    the prediction is from that of the whole clip, in the prediction's unit, when 1/levels, 2/levels, ... of the
    tubelets are gone or there. They go in order of E, of nearness to the frame's centre, and at random (the mean of
    several orders). A map that points at what matters has a higher curve of deletion and a lower one of insertion than
    a random order. E has no sign, so neither have distances.
    """
    cells = tubelets(clip.shape[:3], config.tubelet_pixels)
    count = int(cells.max()) + 1
    shares = np.arange(1, config.levels) / config.levels
    variants, names = [clip], [""]
    chosen_infills = list(infills(clip).items())[: 1 if config.brief else None]
    for order, rank in _orders(E, cells, config):
        for share in shares:
            chosen = (rank < share * count)[cells][..., None]
            for infill, hidden in chosen_infills:
                variants += [np.where(chosen, hidden, clip), np.where(chosen, clip, hidden)]
                names += [f"deletion/{infill}/{order}", f"insertion/{infill}/{order}"]
    whole, *moved = predict(variants)
    distances: dict[str, list[float]] = {}
    for name, prediction in zip(names[1:], moved, strict=True):
        distances.setdefault(name, []).append(abs(prediction - whole))
    return {name: np.reshape(values, (-1, len(shares))).mean(axis=0) for name, values in distances.items()}


def tubelets(shape: tuple[int, ...], pixels: int) -> np.ndarray:
    """int (S, H, W), which tubelet every pixel is in."""
    seconds, rows, columns = np.indices(shape, sparse=True)
    down, across = -(-shape[1] // pixels), -(-shape[2] // pixels)
    return (seconds * down + rows // pixels) * across + columns // pixels


def infills(clip: np.ndarray) -> dict[str, np.ndarray]:
    """What stands where something was taken out: the clip's mean colour, or the blurred frame."""
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), clip.shape[1] / 8) for frame in clip])
    mean = np.broadcast_to(clip.mean(axis=(0, 1, 2)).round().astype(np.uint8), clip.shape)
    return {"blur": blurred, "mean colour": mean}


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


def stability(mapper: EngagementMapper, clip: np.ndarray, E: np.ndarray) -> dict[str, float]:
    """Spearman of a clip's E with that of the clip encoded again, moved by a pixel, and mirrored (E moved back)."""
    again = reencoded(clip)
    moved = np.pad(clip, ((0, 0), (1, 0), (1, 0), (0, 0)), "edge")[:, :-1, :-1]
    mirrored = np.ascontiguousarray(clip[:, :, ::-1])
    (E_again, _), (E_moved, _), (E_mirrored, _) = mapper([again, moved, mirrored])
    return {
        "encoded again": alike(E, E_again),
        "moved by a pixel": alike(E[:, 1:-1, 1:-1], E_moved[:, 2:, 2:]),
        "mirrored": alike(E, E_mirrored[:, :, ::-1]),
    }


def inside(E: np.ndarray) -> np.ndarray:
    """A map without what is near the frame's border, where fewer convolutions see a pixel: every network's map falls
    off there, whatever its weights and whatever the video shows."""
    rows, columns = (round(BORDER * side) for side in E.shape[1:])
    return E[:, rows : E.shape[1] - rows, columns : E.shape[2] - columns]


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman of two maps over pixels and seconds; NaN where one of them is constant, which says nothing."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic)


def reencoded(clip: np.ndarray, crf: int = REENCODED_CRF) -> np.ndarray:
    """uint8 (S, H, W, 3) through H.264 and back."""
    file = io.BytesIO()
    rows, columns = clip.shape[1:3]
    even = np.pad(clip, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), "edge")  # half as many rows of colours
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.ascontiguousarray(np.stack(frames)[:, :rows, :columns])


def _orders(E: np.ndarray, cells: np.ndarray, config: FaithfulnessConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Name and rank of every tubelet, the first to go has 0."""
    count = int(cells.max()) + 1
    sizes = np.bincount(cells.ravel(), minlength=count)
    random = np.random.default_rng(config.faithfulness_seed)
    breaking_ties = random.permutation(count)
    strength = np.bincount(cells.ravel(), E.ravel(), minlength=count) / sizes
    yield "E", _ranked(-strength, breaking_ties)
    if not config.brief:
        rows, columns = (np.linspace(-1, 1, n) for n in E.shape[1:])
        from_centre = np.broadcast_to(np.hypot(rows[:, None], columns), E.shape)
        nearness = np.bincount(cells.ravel(), from_centre.ravel(), minlength=count) / sizes
        yield "centre", _ranked(nearness, breaking_ties)
    for _ in range(config.random_orders):
        yield "random", random.permutation(count)


def _ranked(values: np.ndarray, breaking_ties: np.ndarray) -> np.ndarray:
    rank = np.empty(len(values), int)
    rank[np.lexsort((breaking_ties, values))] = np.arange(len(values))
    return rank
