"""The two ways in which input can be bad: refused at the door, or an error row inside a run."""

import math
from collections.abc import Mapping
from enum import StrEnum


class Refused(Exception):
    """Input or settings that no work can start from; the job prints the message alone and exits with 2.

    The message names the thing, the place and the next step, e.g.
    ``videos.parquet row 17: likes is "541.2K", expected an integer; convert it first``.
    """


class Broken(Exception):
    """A job that runs cannot go on; says why and what to do, and exits with 1, without a stack trace."""


class ErrorCode(StrEnum):
    """The closed list of ``error_code`` in the scores table."""

    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    NOT_A_VIDEO = "not_a_video"
    TRUNCATED = "truncated"
    NO_VIDEO_STREAM = "no_video_stream"
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"
    DECODE_TIMEOUT = "decode_timeout"
    DECODE_CRASH = "decode_crash"
    NO_PRODUCT_IMAGE = "no_product_image"
    BAD_PRODUCT_IMAGE = "bad_product_image"
    OUT_OF_MEMORY = "out_of_memory"
    QUARANTINED = "quarantined"
    INTERNAL = "internal"


class Stage(StrEnum):
    """Where a video failed: ``error_stage`` in the scores table."""

    FETCH = "fetch"
    DECODE = "decode"
    LOCATE = "locate"
    ENGAGE = "engage"


class VideoError(Exception):
    """One video cannot be scored or trained on: its row carries the code, its neighbours go on."""

    def __init__(self, code: ErrorCode, message: str, stage: Stage):
        super().__init__(code, message, stage)
        self.code, self.message, self.stage = code, message, stage

    def __str__(self) -> str:
        return f"{self.code} in {self.stage}: {self.message}"


class KilledError(VideoError):
    """The video's process was killed from outside, most often by the kernel, which may have taken the wrong one; or
    never got as far as the video."""


def check_positive(values: Mapping[str, float]) -> None:
    """Refused where a flag's value (flag -> value) is not a finite number above 0."""
    for flag, value in values.items():
        if not 0 < value < math.inf:
            raise Refused(f"{flag} is {value:g}, expected a number above 0")
