"""What jobs.demo does."""

import shutil
import time
from pathlib import Path

from analysis.recovery import recovery
from catalog.errors import Refused
from catalog.tables import read_videos
from catalog.world import WorldConfig, WorldPaths, make_world
from jobs import lift, promote, report, score, train
from jobs.command import DONE, ProgressLog, console, print_config, ray_cluster, resolved
from jobs.demo import DemoConfig
from scoring.output import read_scores
from tracking import registry
from tracking.names import CHALLENGER, CHAMPION, MODEL_NAME
from tracking.runs import ui_command
from training.settings import LoopConfig, SplitConfig, TargetConfig
from training.splits import held_out_ids

PAGES = 3
"""of the videos with the highest PE, and as many of those with the lowest"""


def main(config: DemoConfig) -> int:
    started = time.monotonic()
    print_config(resolved(config))
    _say("1 of 5", "making up a world: videos, products, sales, and the truth about them")
    progress = ProgressLog("videos", config.videos)
    world = make_world(
        config.workdir.absolute() / "world",
        videos=config.videos,
        seed=config.seed,
        progress=lambda done, _: progress.update(done),
        config=WorldConfig(seconds=config.seconds, fps=config.fps),
    )
    progress.close()
    split = SplitConfig(seed=config.seed)
    scores, page = config.workdir / "scores", config.workdir / "report.html"
    if (scores / "config.json").exists():
        console.print(f"removing {scores}, an earlier demo's")
        shutil.rmtree(scores)
    with ray_cluster():
        _say("2 of 5", "training the engagement model on their shares")
        version = _trained(
            train.TrainConfig(
                videos=str(world.videos),
                architecture=config.architecture,
                loop=LoopConfig(epochs=config.epochs),
                split=split,
                shuffled_control=False,  # which would take as long again
            )
        )
        _say("3 of 5", "scoring the whole catalogue")
        score.main(
            score.ScoreConfig(
                videos=str(world.videos),
                products=str(world.products),
                output=str(scores),
                model=f"models:/{MODEL_NAME}/{version}",
                save_maps=True,
            )
        )
    _say("4 of 5", "the report, and how much of the truth was found again")
    report.main(report.ReportConfig(scores=str(scores), output=str(page), pages=PAGES))
    videos = read_videos(str(world.videos))
    held_out = held_out_ids(videos, str(world.videos), TargetConfig(), split)
    for line in recovery(world.truth, videos, read_scores(str(scores)), held_out, "shares").lines():
        console.print(line)
    _say("5 of 5", "do the scores predict sales? In this world true PE makes them; in its twin nothing does")
    for what, sales in (("lift", world.sales), ("lift_null", world.null_sales)):
        _lift(config, world, sales, config.workdir / what)
    console.print(
        f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes\n"
        f"report:    {page}\n"
        f"lift:      {config.workdir}/lift/report.html and lift_null/report.html\n"
        f"scores:    {scores}/scores\nworld:     {world.folder}\nMLflow UI: {ui_command()}"
    )
    return DONE


def _trained(config: train.TrainConfig) -> str:
    """Trains, and promotes where that takes no real model's place; returns the new version."""
    before = registry.version_with(CHALLENGER)
    train.main(config)
    version = registry.version_with(CHALLENGER)
    if version is None or version == before:
        raise RuntimeError("the model could not be registered in MLflow (see above), so it cannot be scored with")
    champion = registry.version_with(CHAMPION)
    if champion is None:
        try:
            promote.main(promote.PromoteConfig(version))
        except Refused as refusal:  # as of a demo with a handful of videos
            console.print(f"not promoted: {refusal}")
    else:
        console.print(f"version {champion} stays {CHAMPION}; the demo scores with its own version {version}")
    return version


def _lift(config: DemoConfig, world: WorldPaths, sales: Path, output: Path) -> None:
    console.print(f"\n-- {sales.name}")
    try:
        lift.main(
            lift.LiftConfig(
                scores=str(config.workdir / "scores"),
                sales=str(sales),
                videos=str(world.videos),
                products=str(world.products),
                output=str(output),
                seed=config.seed,
            )
        )
    except Refused as refusal:  # as of a demo with a handful of videos
        console.print(f"not studied: {refusal}")


def _say(step: str, what: str) -> None:
    console.print(f"\n== {step}: {what}")
