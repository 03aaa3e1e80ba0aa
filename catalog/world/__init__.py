"""A made-up world of video ads with known truth: for the demo, the tests and the benchmarks."""

from catalog.world.config import GRID, WorldConfig, WorldPaths
from catalog.world.make import make_world
from catalog.world.masks import Masks, read_masks

__all__ = ["GRID", "Masks", "WorldConfig", "WorldPaths", "make_world", "read_masks"]
