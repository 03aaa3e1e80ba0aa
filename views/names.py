"""Names of the files that are made for a video."""

import hashlib
import re

KEPT_CHARACTERS = 80


def file_stem(video_id: str) -> str:
    """A file's name for any id: the id itself where it is plain, else its plain part and a digest of all of it."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", video_id)[:KEPT_CHARACTERS]
    if plain == video_id:
        return plain
    return f"{plain}-{hashlib.sha256(video_id.encode()).hexdigest()[:12]}"
