"""Videos on both sides of a split that show the same footage, found by a difference hash a sampled frame.

Found: copies that were re-encoded, scaled, squashed, darkened, put between black bars, mostly those with a caption,
shifted by whole samples or cut out of a longer video. Not found: mirrored, rotated or sped-up copies, most that lost a
twentieth or more of every side, bars with words on them, shifts by half a sample in quick scenes, videos of one sample,
footage that is less than half of both videos. Still scenes of one place may be taken for copies of one another.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

NO_TEXTURE = 0
"""the hash of a frame that says nothing: one colour, a few words on a plain ground, nothing but noise"""
BLACK = 32
"""grey levels, of 255: rows and columns that are never brighter are black bars"""
RISE = 1.0
"""grey levels between neighbouring cells; what encoding does to an even ground stays below"""
MIN_RISES = 8
"""of a frame's 64 cells, and as many falls, or it has no texture"""

NEAR_BITS = 8
"""of 64: two frames so far apart may show the same"""
MIN_NEAR_FRAMES, MIN_NEAR_SHARE = 4, 0.5
"""near frames at one offset, and their share of the textured frames of the video that has fewer"""
EQUAL_BITS = 1
"""of every frame instead, in videos of 2 or 3 textured frames: other takes of a scene are within NEAR_BITS too"""

BANDS = (13, 13, 13, 13, 12)
"""bits; frames within 3 bits of each other have two of the five bands in common (Manku et al. 2007, "Detecting
Near-Duplicates for Web Crawling")"""
MAX_SHARED_BY = 200
"""videos: what more of them have in common is a title card or a plain ground, and no reason to compare them"""
PAIRS_AT_ONCE = 2_000_000


def frame_hashes(clip: np.ndarray) -> np.ndarray:
    """The hash of every frame: uint8 (S, H, W, 3) RGB -> uint64 (S,), NO_TEXTURE where a frame says nothing.

    A frame without black bars is averaged to 8 rows of 9 grey cells; a bit is set where the cell to the right is
    brighter (dHash: Krawetz 2013, "Kind of Like That").
    """
    grey = _without_bars(np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]))
    cells = [cv2.resize(frame.astype(np.float32), (9, 8), interpolation=cv2.INTER_AREA) for frame in grey]
    rise: np.ndarray = np.diff(np.stack(cells), axis=2).reshape(len(cells), 64)
    hashes = np.packbits(rise > RISE, axis=1).view(">u8")[:, 0].astype(np.uint64)
    textured = ((rise > RISE).sum(1) >= MIN_RISES) & ((rise < -RISE).sum(1) >= MIN_RISES)
    return np.where(textured, hashes, np.uint64(NO_TEXTURE))


def near_copies(hashes: Sequence[np.ndarray], held_out: np.ndarray) -> list[tuple[int, int]]:
    """(training video, held-out video) for all that show the same footage, as indices into ``hashes``, sorted.

    hashes: of every video, uint64 (S,) as of ``frame_hashes``, all sampled at one rate; held_out: bool (N,).
    Footage is the same where, at one offset in time, MIN_NEAR_FRAMES and MIN_NEAR_SHARE of the frames are within
    NEAR_BITS. Only videos with a pair of frames that share two BANDS are compared, and only those of the same offset.
    """
    footage = _Footage.of(hashes)
    textured, held_out_frames = footage.hashes != NO_TEXTURE, np.asarray(held_out, bool)[footage.video]
    found = np.empty(0, np.int64)
    for mask in _two_bands():
        training = footage.keys(mask, textured & ~held_out_frames)
        for pair, offset in _candidates(footage, training, footage.keys(mask, textured & held_out_frames)):
            found = _distinct(np.concatenate([found, pair[footage.same(pair, offset)]]))
    return [(int(pair // footage.videos), int(pair % footage.videos)) for pair in found]


@dataclasses.dataclass(frozen=True)
class _Footage:
    """The frames of all videos, one after another. A pair of videos is a number: first * videos + second."""

    hashes: np.ndarray
    """uint64 (F,)"""
    video: np.ndarray
    """int (F,)"""
    begin: np.ndarray
    """int (N,), the first frame of a video"""
    length: np.ndarray
    """int (N,), its frames"""
    textured: np.ndarray
    """int (N,), those with texture"""

    @classmethod
    def of(cls, hashes: Sequence[np.ndarray]) -> "_Footage":
        length = np.array([len(of_video) for of_video in hashes], np.int64)
        frames = np.concatenate([np.empty(0, np.uint64), *(np.asarray(of_video, np.uint64) for of_video in hashes)])
        video = np.repeat(np.arange(len(length)), length)
        textured = np.bincount(video[frames != NO_TEXTURE], minlength=len(length))
        return cls(frames, video, np.cumsum(length) - length, length, textured)

    @property
    def videos(self) -> int:
        return len(self.length)

    def keys(self, mask: np.uint64, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(masked hashes uint64 (K,) in order, the first frame of a video that has each, int (K,))."""
        frames = np.flatnonzero(wanted)
        keys = self.hashes[frames] & mask
        order = np.argsort(keys, kind="stable")  # frames of a video stay in order
        keys, frames = keys[order], frames[order]
        again = (keys[1:] == keys[:-1]) & (self.video[frames[1:]] == self.video[frames[:-1]])
        first = np.concatenate([np.ones(min(1, len(keys)), bool), ~again])
        return keys[first], frames[first]

    def same(self, pair: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """bool (P,): whether frame t + offset of the first video is frame t of the second for enough t."""
        first, second = pair // self.videos, pair % self.videos
        skip_first, skip_second = np.maximum(offset, 0), np.maximum(-offset, 0)
        overlap = np.minimum(self.length[first] - skip_first, self.length[second] - skip_second)
        near, equal = np.zeros(len(pair), np.int64), np.zeros(len(pair), np.int64)
        for part in _parts(overlap):
            one = self.hashes[_ranges((self.begin[first] + skip_first)[part], overlap[part])]
            other = self.hashes[_ranges((self.begin[second] + skip_second)[part], overlap[part])]
            distance = np.bitwise_count(one ^ other)
            distance[(one == NO_TEXTURE) | (other == NO_TEXTURE)] = 64
            begin = np.cumsum(overlap[part]) - overlap[part]
            near[part] = np.add.reduceat(distance <= NEAR_BITS, begin, dtype=np.int64)
            equal[part] = np.add.reduceat(distance <= EQUAL_BITS, begin, dtype=np.int64)
        fewer = np.minimum(self.textured[first], self.textured[second])
        many = (near >= MIN_NEAR_FRAMES) & (near >= MIN_NEAR_SHARE * fewer)
        return many | ((fewer > 1) & (fewer < MIN_NEAR_FRAMES) & (equal == fewer))


def _without_bars(grey: np.ndarray) -> np.ndarray:
    """(S, H, W) without the black bars, equally wide left and right, and above and below, of the whole clip."""
    height, width = grey.shape[1:]
    brightest = grey.max(0)
    rows, columns = np.flatnonzero(brightest.max(1) > BLACK), np.flatnonzero(brightest.max(0) > BLACK)
    if not len(rows):
        return grey
    top, left = min(rows[0], height - 1 - rows[-1]), min(columns[0], width - 1 - columns[-1])
    return grey[:, top : height - top, left : width - left]


def _two_bands() -> Iterator[np.uint64]:
    """Masks of every two of the BANDS."""
    edges = np.cumsum((0, *BANDS)).tolist()
    bands = [(1 << high) - (1 << low) for low, high in itertools.pairwise(edges)]
    for one, other in itertools.combinations(bands, 2):
        yield np.uint64(one | other)


def _candidates(
    footage: _Footage, training: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pairs of a training and a held-out video with a near frame of one key, that frame's offset), some at a time."""
    keys, frames = training
    asked, asking = held_out
    low, high = np.searchsorted(keys, asked, "left"), np.searchsorted(keys, asked, "right")
    among_asked = np.searchsorted(asked, asked, "right") - np.searchsorted(asked, asked, "left")
    usable = (high > low) & (high - low + among_asked <= MAX_SHARED_BY)
    low, count, asking = low[usable], (high - low)[usable], asking[usable]
    for part in _parts(count):
        one, other = frames[_ranges(low[part], count[part])], np.repeat(asking[part], count[part])
        near = np.bitwise_count(footage.hashes[one] ^ footage.hashes[other]) <= NEAR_BITS
        one, other = one[near], other[near]
        first, second = footage.video[one], footage.video[other]
        offset = (one - footage.begin[first]) - (other - footage.begin[second])
        offsets = 2 * int(footage.length.max())
        number = _distinct((first * footage.videos + second) * offsets + offset + offsets // 2)
        yield number // offsets, number % offsets - offsets // 2


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Every number once, in order."""
    # np.unique hashes (NumPy 2.4), which takes many times as long for such numbers
    ordered = np.sort(numbers)
    return ordered[np.diff(ordered, prepend=-1) > 0]


def _ranges(begin: np.ndarray, count: np.ndarray) -> np.ndarray:
    """begin[0], begin[0] + 1, ... (count[0] of them), begin[1], ...: int (count.sum(),)."""
    return np.repeat(begin - (np.cumsum(count) - count), count) + np.arange(count.sum())


def _parts(count: np.ndarray) -> Iterator[slice]:
    """Slices of ``count`` that sum to PAIRS_AT_ONCE at most, or hold one number."""
    end = np.cumsum(count)
    start = 0
    while start < len(count):
        before = end[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(end, before + PAIRS_AT_ONCE, "right")))
        yield slice(start, stop)
        start = stop
