"""Settings of a made-up world and the places of its files."""

from dataclasses import dataclass
from pathlib import Path

from catalog.errors import Refused

GRID = 112
"""Side of the square grid on which truth masks are kept: the engagement model's input size."""


@dataclass(frozen=True)
class WorldConfig:
    """What a made-up world looks like. Noise levels are standard deviations."""

    seconds: tuple[float, float] = (6.0, 12.0)
    """Shortest and longest video, seconds."""
    width: int = 360
    """Frame width, px."""
    height: int = 640
    """Frame height, px."""
    fps: int = 12
    """Frames a second."""
    crf: int = 25
    """H.264 constant rate factor: lower is sharper and larger."""
    reach_effect: float = 0.40
    """Log counts a standard deviation of the creator's log followers adds."""
    creator_banner: bool = False
    """Whether every creator has a banner of his own behind his videos: what a model can know him by."""
    signal_effect: float = 1.0
    """Log counts a standard deviation of the engaging element's amount adds."""
    count_noise: float = 0.3
    """Noise of log shares (likes and comments have their own draw, a little larger), log units."""
    lift_effect: float = 10.0
    """Daily revenue a standard deviation of true PE adds after the post (when sales_effect)."""
    lift_noise: float = 4.0
    """Noise of a video's lift, in daily revenue; all there is in the null world."""
    sales_days: int = 180
    """Length of the sales panel, days; videos post in its middle two thirds."""
    video_timeout_s: float = 300.0
    """Longest wait for any next video to be finished before giving up, seconds."""

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < GRID:
            raise Refused(
                f"a made-up video of {self.width}x{self.height} px cannot be encoded for the grid; "
                f"use even sides of {GRID} px or more"
            )
        if not 0 < self.seconds[0] <= self.seconds[1] or self.fps < 2:
            raise Refused(f"seconds={self.seconds} at {self.fps} fps make no video; give shortest <= longest, fps > 1")


@dataclass(frozen=True)
class WorldPaths:
    """Where the files of a made-up world are."""

    folder: Path

    @property
    def videos(self) -> Path:
        return self.folder / "videos.parquet"

    @property
    def products(self) -> Path:
        return self.folder / "products.parquet"

    @property
    def sales(self) -> Path:
        return self.folder / "sales.parquet"

    @property
    def null_sales(self) -> Path:
        """The sales of the same products had no video any effect that depends on PE: the null world."""
        return self.folder / "sales_null.parquet"

    @property
    def truth(self) -> Path:
        return self.folder / "truth.parquet"

    @property
    def masks(self) -> Path:
        return self.folder / "masks"

    @property
    def manifest(self) -> Path:
        """Settings the world was made with; written last, so its presence means that the world is whole."""
        return self.folder / "world.json"
