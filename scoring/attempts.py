"""What a scoring job has in hand, so that a video which kills its process is found out and left alone.

OUTPUT/attempts/STAGE-block-*.json    a block in hand: its video_ids; gone when the stage is done with it
OUTPUT/attempts/STAGE-video-*.json    a video in hand on its own: how often it was begun and not ended
OUTPUT/stop                           asks to finish what is in hand and to begin nothing else; anybody may create it

A block costs one small file. Where one is begun that was begun before, or that a job before died with, each of its
videos is taken on its own; one that was begun MAX_TRIES times in a row and never ended is a row with the code
``quarantined``. The files outlive workers, nodes and drivers; ``--retry-failed`` starts a video's count anew. Where
they cannot be written (a full disk) scoring goes on without: WRITE will say so.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from catalog import storage
from catalog.errors import ErrorCode, Stage, VideoError

MAX_TRIES = 3
LOOK_S, LOOK_IN_STORE_S = 1.0, 10.0
"""between two looks for ``stop``; in a store each costs two requests"""
READERS = 16


@dataclasses.dataclass(frozen=True)
class Attempts:
    """Of the jobs that write to ``output_uri``."""

    output_uri: str
    suspects: frozenset[str] = frozenset()
    """videos that a job before had in hand when it died"""

    @contextmanager
    def block(self, stage: Stage, video_ids: Sequence[str]) -> Iterator[bool]:
        """A block in hand. Yields whether each of its videos must be taken on its own."""
        uri, again = self._uri(stage, "block", video_ids), False
        with suppress(OSError):
            again = storage.exists(uri)
            if not again:
                storage.write_bytes_atomically(uri, json.dumps({"video_ids": list(video_ids)}).encode())
        yield again or not self.suspects.isdisjoint(video_ids)
        with suppress(OSError):
            storage.remove(uri)  # and not where an error came: the next job is to know

    @contextmanager
    def video(self, stage: Stage, video_id: str) -> Iterator[None]:
        """A video in hand. Raises VideoError, quarantined, where it was begun too often."""
        uri = self._uri(stage, "video", [video_id])
        tries = self._tries(uri)
        if tries >= MAX_TRIES:
            raise VideoError(
                ErrorCode.QUARANTINED,
                f"the process that worked on it died {tries} times; give it another chance with --retry-failed",
                stage,
            )
        with suppress(OSError):
            storage.write_bytes_atomically(uri, json.dumps({"video_ids": [video_id], "tries": tries + 1}).encode())
        yield
        with suppress(OSError):
            storage.remove(uri)

    def resumed(self, left: Iterable[str], retried: Set[str]) -> "Attempts":
        """For a job that begins and has the videos ``left`` to do, ``retried`` of them with a clean slate."""
        storage.remove(f"{self.output_uri}/stop")
        uris = self._files()
        with ThreadPoolExecutor(READERS) as readers:
            contents = list(readers.map(_content, uris))
        for uri, content in zip(uris, contents, strict=True):
            if "tries" in content and retried.intersection(content["video_ids"]):
                storage.remove(uri)
        seen = {video_id for content in contents for video_id in content["video_ids"]}
        return dataclasses.replace(self, suspects=frozenset(seen.intersection(left) - retried))

    def ask_to_stop(self) -> None:
        storage.write_bytes_atomically(f"{self.output_uri}/stop", b"")

    def asked_to_stop(self) -> bool:
        with suppress(OSError):
            return storage.exists(f"{self.output_uri}/stop")
        return False

    def forget(self) -> None:
        """The job is finished."""
        storage.remove(f"{self.output_uri}/stop")
        for uri in self._files():
            storage.remove(uri)

    def _tries(self, uri: str) -> int:
        try:
            return json.loads(storage.read_bytes(uri))["tries"]
        except OSError:
            return 0

    def _files(self) -> list[str]:
        try:
            return storage.files_in(f"{self.output_uri}/attempts") or []
        except FileNotFoundError:
            return []

    def _uri(self, stage: Stage, what: str, video_ids: Sequence[str]) -> str:
        name = hashlib.sha256("\0".join(video_ids).encode()).hexdigest()[:20]
        return f"{self.output_uri}/attempts/{stage}-{what}-{name}.json"


def _content(uri: str) -> dict[str, Any]:
    try:
        return json.loads(storage.read_bytes(uri))
    except FileNotFoundError:  # a worker of the job before was done with it in this moment
        return {"video_ids": []}


class StopSign:
    """Whether the job was asked to stop, as it was at most LOOK_S or LOOK_IN_STORE_S ago."""

    def __init__(self, attempts: Attempts | None):
        self.attempts, self.seen, self.looked = attempts, False, -math.inf
        is_local = attempts is None or storage.scheme_of(attempts.output_uri) == "file"
        self.every_s = LOOK_S if is_local else LOOK_IN_STORE_S

    def __call__(self) -> bool:
        if self.attempts is not None and time.monotonic() > self.looked + self.every_s:
            self.seen, self.looked = self.attempts.asked_to_stop(), time.monotonic()
        return self.seen
