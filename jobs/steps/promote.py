"""What jobs.promote does."""

from catalog.errors import Refused
from jobs.command import DONE, console, print_config, resolved
from jobs.promote import PromoteConfig
from tracking import registry
from tracking.names import CHAMPION, MODEL_NAME


def main(config: PromoteConfig) -> int:
    print_config(resolved(config))
    version = config.version if config.version.isdigit() else registry.version_with(config.version)
    if version is None:
        raise Refused(f"--version {config.version}: no version of {MODEL_NAME} bears that alias")
    compared = registry.compared_anew(version)
    if compared is not None:
        champion, gain, videos = compared
        console.print(f"SRCC over the present {CHAMPION}, version {champion}, on the {videos} held-out videos of both: "
                      f"{gain:+.3f}")  # fmt: skip
    registry.promote(version, config.force)
    console.print(f"{MODEL_NAME} version {version} is now {CHAMPION}")
    return DONE
