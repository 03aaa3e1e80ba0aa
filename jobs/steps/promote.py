"""What jobs.promote does."""

from jobs.command import DONE, console, print_config, resolved
from jobs.promote import PromoteConfig
from tracking import registry
from tracking.names import CHAMPION, MODEL_NAME


def main(config: PromoteConfig) -> int:
    print_config(resolved(config))
    registry.promote(config.version, config.force)
    console.print(f"{MODEL_NAME} version {config.version} is now {CHAMPION}")
    return DONE
