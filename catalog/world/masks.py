"""Truth masks: Parquet part files, one row a video and second, each mask packed to bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from catalog.world.config import GRID

VIDEOS_A_PART = 64
SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("second", pa.int32(), nullable=False),
        pa.field("product", pa.binary(GRID * GRID // 8), nullable=False),
        pa.field("element", pa.binary(GRID * GRID // 8), nullable=False),
        pa.field("distractor", pa.binary(GRID * GRID // 8), nullable=False),
    ]
)


@dataclass(frozen=True)
class Masks:
    """Where things are, bool (seconds, GRID, GRID) each, on the frame squashed to the grid."""

    product: np.ndarray
    element: np.ndarray
    distractor: np.ndarray


def write_masks(folder: Path, videos: Sequence[tuple[str, Sequence[tuple[bytes, bytes, bytes]]]]) -> None:
    """Write (video_id, packed product, element and distractor masks a second) under `folder`/masks."""
    target = folder / "masks"
    target.mkdir(exist_ok=True)
    for part, first in enumerate(range(0, len(videos), VIDEOS_A_PART)):
        rows = [
            {
                "video_id": video_id,
                "second": second,
                "product": product,
                "element": element,
                "distractor": other,
            }
            for video_id, seconds in videos[first : first + VIDEOS_A_PART]
            for second, (product, element, other) in enumerate(seconds)
        ]
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, target / f"part-{part:05d}.parquet", compression="zstd")


def read_masks(folder: Path, video_id: str) -> Masks:
    """Truth masks of one video of the world in `folder`; KeyError where the world has no such video."""
    rows = ds.dataset(folder / "masks", schema=SCHEMA).to_table(filter=ds.field("video_id") == video_id)
    if rows.num_rows == 0:
        raise KeyError(f"{folder / 'masks'} has no video {video_id!r}; take an id from truth.parquet")
    rows = rows.sort_by("second")
    return Masks(*(unpack(rows[name].to_pylist()) for name in ("product", "element", "distractor")))


def unpack(packed: list[bytes]) -> np.ndarray:
    """Bits, row by row, most significant first -> bool (len, GRID, GRID)."""
    bits = np.unpackbits(np.frombuffer(b"".join(packed), np.uint8))
    return bits.reshape(len(packed), GRID, GRID).astype(bool)
