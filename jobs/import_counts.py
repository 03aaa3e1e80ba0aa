"""Make a table from one with counts such as 541.2K: python -m jobs.import_counts --input T --output T.parquet"""

import dataclasses
from typing import Literal

from jobs.command import run_job


@dataclasses.dataclass(frozen=True)
class ImportCountsConfig:
    input: str
    """table as it was scraped (.parquet, .csv, .jsonl, or a folder of part files; local or s3://)"""
    output: str
    """.parquet file to write; an earlier one is replaced"""
    rename: tuple[str, ...] = ()
    """OLD=NEW for each column that this project names otherwise, e.g. vid_id=video_id vid_nlike=likes; the other
    columns are kept as they are, but video_uri becomes absolute"""
    counts: tuple[str, ...] = ("likes", "comments", "shares", "views", "saves", "followers")
    """columns, by their new names, that hold counts (541.2K, 1,234, 454); of the default ones those that are there"""
    durations: tuple[str, ...] = ("duration",)
    """columns of durations (00:31, 01:02:03 or seconds), which become seconds; the default one where it is there"""
    times: tuple[str, ...] = ("posted_at", "scraped_at")
    """columns of times, in UTC unless they name a zone; of the default ones those that are there"""
    null_words: tuple[str, ...] = ()
    """what else stands for no value in these columns, beside an empty cell, -, N/A, NaN and null"""
    keep: Literal["first", "last", "newest"] | None = None
    """which row to keep of a video that has several: the first or last in the table, or that of the latest
    scraped_at; default: such a table is refused"""


def main(config: ImportCountsConfig) -> int:
    from jobs.steps import import_counts

    return import_counts.main(config)


if __name__ == "__main__":
    run_job(ImportCountsConfig, main, __doc__ or "")
