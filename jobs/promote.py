"""Make a registered engagement model the champion: python -m jobs.promote --version N"""

import dataclasses

from jobs.command import run_job


@dataclasses.dataclass(frozen=True)
class PromoteConfig:
    version: str
    """version of pe-engagement, as printed by jobs.train, or its alias, such as challenger"""
    force: bool = False
    """even where it predicts no better than models without video, or than the present champion, or was
    judged on a random split; a tag will say so"""


def main(config: PromoteConfig) -> int:
    from jobs.steps import promote

    return promote.main(config)


if __name__ == "__main__":
    run_job(PromoteConfig, main, __doc__ or "")
