"""Make a registered engagement model the champion: python -m jobs.promote --version N"""

import dataclasses

from jobs.command import DONE, console, print_config, resolved, run_job
from tracking import registry


@dataclasses.dataclass(frozen=True)
class PromoteConfig:
    version: str
    """version of pe-engagement, as printed by jobs.train"""


def main(config: PromoteConfig) -> int:
    print_config(resolved(config))
    registry.promote(config.version)
    console.print(f"{registry.MODEL_NAME} version {config.version} is now {registry.CHAMPION}")
    return DONE


if __name__ == "__main__":
    run_job(PromoteConfig, main, __doc__ or "")
