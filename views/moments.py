"""What a video's second-by-second numbers say: when product and attention meet, when they miss each other.

Kernel code: imports neither Ray nor MLflow. Every sentence follows from the numbers by the rules below, nothing else.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

HOOK_S = 3.0
"""A short video is swiped away or watched in its first three seconds."""
OFF_PRODUCT, ON_PRODUCT = 0.8, 1.2
"""attention on the product, in times of the picture's mean of the same seconds"""
SMALL_SHARE = 0.05
"""of the picture: a product smaller than this could be shown larger"""
EVEN = 1.15
"""attention whose strongest second is below so many times its mean has no peak"""


@dataclasses.dataclass(frozen=True)
class Span:
    """Seconds of a video, from the first sample's to the last one's end."""

    start_s: float
    end_s: float
    first: int
    stop: int
    """samples first to stop - 1"""

    def __str__(self) -> str:
        return f"{self.start_s:g}–{self.end_s:g} s"


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """One thing to try, where, and the numbers behind it."""

    kind: str
    span: Span
    what: str
    because: str


@dataclasses.dataclass(frozen=True)
class Moments:
    """One video's samples: E, P and PE, each a mean over the picture; P and PE are None without a product."""

    e: np.ndarray
    p: np.ndarray | None
    pe: np.ndarray | None
    samples_per_second: float
    levels: np.ndarray | None = None
    """uint8 (S, H, W): the saved map, where there is one"""

    def spans(self, mask: np.ndarray) -> list[Span]:
        """Runs of samples that the mask marks."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
        rate = self.samples_per_second
        return [Span(a / rate, b / rate, int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    def shown(self) -> list[Span]:
        """When the product is on screen."""
        return [] if self.p is None else self.spans(self.p > 0)

    def peaks(self) -> list[Span]:
        """When attention is above the middle between its median and its strongest; none where it is even."""
        if self.e.max() < EVEN * self.e.mean() or self.e.mean() == 0:
            return []
        return self.spans(self.e > (np.median(self.e) + self.e.max()) / 2)

    def hook(self) -> float | None:
        """Attention of the first ``HOOK_S`` seconds, in times of the whole video's; None for a shorter video."""
        return hook(self.e, self.samples_per_second)

    def on_product(self, span: Span) -> float | None:
        """Attention on the product in the span, in times of the whole picture's; 1 where it is like everywhere."""
        e, p, pe = self._of(span)
        return float(pe.sum() / p.sum() / e.mean()) if p.sum() > 0 and e.mean() > 0 else None

    def where(self, span: Span) -> str | None:
        """In which ninth of the picture attention is strongest in the span, in words."""
        if self.levels is None:
            return None
        mean = self.levels[span.first : span.stop].mean(axis=0)
        blocks = [[block.mean() for block in np.array_split(row, 3, axis=1)] for row in np.array_split(mean, 3)]
        row, column = np.unravel_index(np.argmax(blocks), (3, 3))
        up, side = ("upper", "", "lower")[row], ("left", "", "right")[column]
        return f"{up} {side}".strip() or "middle"

    def missed(self) -> str | None:
        """Where product and attention miss each other, in words; None where there is no product."""
        if self.p is None or self.pe is None:
            return None
        shown, peaks = self.shown(), self.peaks()
        if not shown:
            return "The product was found in no second."
        seen = f"The product shows at {_listed(shown)}"
        if not peaks:
            return f"{seen}; attention is even all through."
        alone = [peak for peak in peaks if not (self.p[peak.first : peak.stop] > 0).any()]
        if not alone:
            return f"{seen}; attention peaks at {_listed(peaks)}, with the product on screen."
        return f"{seen}; attention peaks at {_listed(alone)}, without it."

    def suggestions(self) -> list[Suggestion]:
        """In the order of time; none where nothing calls for a change."""
        if self.p is None or self.pe is None or not (self.p > 0).any():
            return []
        found = [*self._hook_without_product(), *self._peaks_without_product(), *self._by_showing(), *self._best()]
        return sorted(found, key=lambda suggestion: (suggestion.span.start_s, suggestion.kind))

    def _of(self, span: Span) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.p is not None and self.pe is not None
        return self.e[span.first : span.stop], self.p[span.first : span.stop], self.pe[span.first : span.stop]

    def _hook_without_product(self) -> list[Suggestion]:
        first = self.shown()[0]
        opening = round(HOOK_S * self.samples_per_second)
        if first.start_s < HOOK_S or len(self.e) <= opening:
            return []
        share = self.e[:opening].sum() / self.e.sum() if self.e.sum() else 0.0
        span = Span(0.0, HOOK_S, 0, opening)
        because = (
            f"The first {HOOK_S:g} s hold {share:.0%} of all attention; the product shows from {first.start_s:g} s."
        )
        return [Suggestion("hook", span, "Show the product in the opening.", because)]

    def _peaks_without_product(self) -> list[Suggestion]:
        assert self.p is not None
        found = []
        for peak in self.peaks():
            times = self.e[peak.first : peak.stop].mean() / self.e.mean()
            in_hook = peak.end_s <= HOOK_S and self.shown()[0].start_s >= HOOK_S  # the hook's own suggestion says it
            if not in_hook and not (self.p[peak.first : peak.stop] > 0).any():
                because = f"Attention is {times:.1f} times its mean there, and the product is not on screen."
                found.append(Suggestion("peak", peak, "Bring the product into this moment.", because))
        return found

    def _by_showing(self) -> list[Suggestion]:
        found = []
        for span in self.shown():
            times = self.on_product(span)
            share = self._of(span)[1].mean()
            if times is None:
                continue
            says = f"Attention on the product is {times:.1f} times the picture’s mean"
            if times < OFF_PRODUCT:
                where = self.where(span)
                to = f"; it is strongest {_at(where)}" if where else ""
                what = "Move the product to what draws attention, or calm what draws it away."
                found.append(Suggestion("off_product", span, what, f"{says}{to}."))
            elif times > ON_PRODUCT and share < SMALL_SHARE:
                because = f"{says}, but the product fills {share:.1%} of the picture."
                found.append(Suggestion("small", span, "Show the product larger.", because))
        return found

    def _best(self) -> list[Suggestion]:
        assert self.pe is not None
        if self.pe.max() == 0:
            return []
        best = int(np.argmax(self.pe))
        rate = self.samples_per_second
        span = Span(best / rate, (best + 1) / rate, best, best + 1)
        because = f"PE is highest here, {self.pe.max() / self.pe.mean():.1f} times the video’s mean."
        return [Suggestion("best", span, "Keep this moment; it suits the cover picture.", because)]


def hook(e: np.ndarray, samples_per_second: float) -> float | None:
    """See ``Moments.hook``."""
    opening = round(HOOK_S * samples_per_second)
    return float(e[:opening].mean() / e.mean()) if len(e) > opening and e.mean() > 0 else None


def _listed(spans: Sequence[Span]) -> str:
    *head, last = map(str, spans)
    return f"{', '.join(head)} and {last}" if head else last


def _at(place: str) -> str:
    alone = {"middle": "in the middle", "left": "on the left", "right": "on the right",
             "upper": "at the top", "lower": "at the bottom"}  # fmt: skip
    return alone.get(place, f"at the {place}")
