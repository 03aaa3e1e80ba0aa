"""What a training run is to be: its flags and tables, checked and read, and whether it was begun before."""

import contextlib
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from catalog import storage
from catalog.errors import Broken, Refused, check_positive
from catalog.lock import FolderLock
from catalog.sampling import check_sampling
from catalog.tables import check_references, read_products, read_videos
from jobs.command import console, read_flags
from jobs.train import TrainConfig
from tracking.runs import table_name
from training.clips import Clips
from training.models import EngagementModel, ModelSpec, load_pretrained
from training.networks import ARCHITECTURES
from training.run import Diverged, check_enough, forget, run_folder
from training.splits import HELD_OUT, LEFT_OUT, TRAINING, VALIDATION, overlaps, sides
from training.targets import columns_of, columns_to_residualize, labelled

SHOWN = 5
"""rows that a message names"""
STORED_BY_RAY_TRAIN = ("file", "s3", "gs", "gcs", "abfs", "abfss")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SWEEP_EXAMPLE = "learning-rate: [0.001, 0.003]"


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a run needs, checked."""

    config: TrainConfig
    settings: dict
    spec: ModelSpec
    examples: pd.DataFrame
    """``training.targets.Examples.table`` with ``side``"""
    overlaps: dict[str, int]
    digest: str
    """of the settings and examples"""
    data_digest: str
    """of the videos, labels and sides that models are compared on"""
    name: str
    """of the folder in --storage"""
    init_weights: bytes | None

    @property
    def title(self) -> str:
        """The run's name in MLflow."""
        return self.config.name or f"{self.spec.target} {self.spec.architecture} {self.digest[:6]}"


def prepared(config: TrainConfig, settings: dict) -> Plan:
    """Everything is checked and read; nothing is written. Raises Refused."""
    target, residualized = config.targets.target, columns_to_residualize(config.targets)
    spec = ModelSpec(
        config.architecture, config.input_size, target,
        sample_fps=config.sampling.sample_fps, residualized_on=",".join(residualized),
    )  # fmt: skip
    init_weights = check(config, spec)
    videos = read_videos(config.videos, required=("video_id", "video_uri", *columns_of(target)))
    if config.products is not None:
        check_references(videos, read_products(config.products), config.videos, config.products)
    if config.limit is not None:
        videos = videos.slice(0, config.limit)
    chosen = labelled(videos, config.videos, config.targets)
    examples = chosen.table.assign(side=sides(chosen.table, config.videos, config.split))
    check_enough(examples, config.split.validation_fraction > 0, {})
    shared = overlaps(examples, examples["side"].to_numpy())
    for why, count in chosen.left_out.items():
        console.print(f"{count} of {videos.num_rows} videos are left out: {why}")
    sizes = examples["side"].value_counts().to_dict()
    console.print(
        f"{len(examples)} videos with {target}, split by {config.split.split}: {sizes.get(TRAINING, 0)} to train on, "
        + (f"{sizes[VALIDATION]} to choose the epoch by, " if VALIDATION in sizes else "")
        + f"{sizes.get(HELD_OUT, 0)} held out"
        + (f", {sizes[LEFT_OUT]} on neither side" if LEFT_OUT in sizes else "")
    )
    console.print("shared by both sides: " + ", ".join(f"{count} {what}" for what, count in shared.items()))
    odd = examples[examples["suspicious"] != ""]
    if len(odd):
        weight = config.targets.suspicious_weight
        console.print(f"{len(odd)} videos have counts that contradict one another and weigh {weight:g}, such as:")
        for video_id, reason in zip(odd["video_id"][:SHOWN], odd["suspicious"][:SHOWN], strict=True):
            console.print(f"  {video_id}: {reason}")
    for warning in chosen.warnings:
        console.print(f"warning: {warning}")
    data_digest = digest_of(examples)
    swept = {} if config.sweep is None else read_flags(Path(config.sweep), "--sweep", SWEEP_EXAMPLE)
    told = json.dumps(how(settings) | {"sweep": swept}, default=str, sort_keys=True)
    digest = hashlib.sha256((told + data_digest).encode())
    name = config.name or f"train-{digest.hexdigest()[:10]}"
    return Plan(config, settings, spec, examples, shared, digest.hexdigest()[:10], data_digest, name, init_weights)


def digest_of(examples: pd.DataFrame) -> str:
    """Of who is trained and judged on which label."""
    used = examples.loc[examples["side"] != LEFT_OUT, ["video_id", "creator_id", "label", "weight", "side"]]
    rows = used.sort_values("video_id").to_csv(index=False, float_format="%.6g")
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def tags_of(plan: Plan) -> dict[str, str]:
    config = plan.config
    return {
        "catalogue": table_name(config.videos),
        "target": config.targets.target,
        "residualized_on": plan.spec.residualized_on or "nothing",
        "architecture": config.architecture,
        "split": config.split.split,
        "data_digest": plan.data_digest,
    }


def cache_of(config: TrainConfig) -> str:
    return config.clip_cache or f"{config.storage.rstrip('/')}/clips"


def check(config: TrainConfig, spec: ModelSpec) -> bytes | None:
    """Everything that can be told before work starts; returns the initial weights' bytes. Raises Refused."""
    loop, split = config.loop, config.split
    if spec.architecture not in ARCHITECTURES:
        raise Refused(f"--architecture {spec.architecture}: there is no such network; "
                      f"choose one of {', '.join(ARCHITECTURES)}")  # fmt: skip
    if not 0 <= split.seed < 2**32:
        raise Refused(f"--seed is {split.seed}, expected at least 0 and below 2^32")
    if config.name is not None and not NAME.fullmatch(config.name):
        raise Refused(f"--name {config.name!r} is to name a folder: give letters, digits, '.', '_' and '-', "
                      "the first a letter or digit")  # fmt: skip
    at_least = {
        "--workers": (config.workers, 1),
        "--epochs": (loop.epochs, 1),
        "--batch-size": (loop.batch_size, 1),
        "--max-clip-frames": (loop.max_clip_frames, 1),
        "--input-size": (config.input_size, 32),
        "--weight-decay": (loop.weight_decay, 0),
        "--input-noise": (loop.input_noise, 0),
        "--max-shift": (loop.max_shift, 0),
        "--frozen-epochs": (loop.frozen_epochs, 0),
        "--backbone-rate": (loop.backbone_rate, 0),
        "--patience": (loop.patience, 0),
        "--wait-for-workers": (config.wait_for_workers, 0),
        "--limit": (1 if config.limit is None else config.limit, 1),
        "--cpus-per-worker": (1 if config.cpus_per_worker is None else config.cpus_per_worker, 1),
    }
    for flag, (value, least) in at_least.items():
        if not value >= least:
            raise Refused(f"{flag} is {value}, expected at least {least:g}")
    check_positive({"--learning-rate": loop.learning_rate})
    if loop.batch_size % config.workers:
        raise Refused(
            f"--batch-size {loop.batch_size} cannot be shared evenly by {config.workers} workers; give a multiple of it"
        )
    if loop.patience and not split.validation_fraction:
        raise Refused("--patience chooses an epoch by videos that then cannot judge it; give --validation-fraction, "
                      "such as 0.15, so that it has videos of its own")  # fmt: skip
    if loop.frozen_epochs and config.init_weights is None:
        raise Refused("--frozen-epochs keeps a backbone as it is; without --init-weights it knows nothing yet")
    check_sampling(config.sampling)
    if storage.scheme_of(config.storage) not in STORED_BY_RAY_TRAIN:
        raise Refused(f"--storage {config.storage}: Ray Train keeps checkpoints in local folders, s3://, gs:// and "
                      "abfs://; give one of these")  # fmt: skip
    storage.check_writable(config.storage)
    storage.check_writable(cache_of(config))
    if config.init_weights is None:
        return None
    try:
        weights = storage.read_bytes(config.init_weights)
    except OSError as error:
        raise Refused(f"--init-weights {config.init_weights} cannot be read: {storage.reason(error)}") from error
    load_pretrained(EngagementModel(spec).network, io.BytesIO(weights), config.init_weights)
    return weights


def how(settings: dict) -> dict:
    """The settings that decide what a run comes to; the others may differ when it goes on."""
    beside_it = ("storage", "name", "dry_run", "cpus_per_worker", "unknown_at_posting", "clip_cache", "sweep",
                 "wait_for_workers", "shuffled_control")  # fmt: skip
    return {k: v for k, v in settings.items() if k not in beside_it}


@dataclasses.dataclass(frozen=True)
class Begun:
    """What is kept of a run until it is done, so that the same command goes on with it."""

    digest: str
    mlflow_run: str | None
    undecodable: dict[str, str] | None = None
    """video_id -> why, once the videos have been decoded"""


def _run_file(storage_uri: str, name: str) -> str:
    return f"{run_folder(storage.absolute(storage_uri), name)}.json"


def begun_run(storage_uri: str, name: str, digest: str) -> Begun | None:
    """The run to go on with. Raises Refused where the run of this name learns otherwise or from other videos: its
    weights may know the videos that are now held out."""
    try:
        begun = Begun(**json.loads(storage.read_bytes(_run_file(storage_uri, name))))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        reason = storage.reason(error) if isinstance(error, OSError) else "it is broken"
        raise Refused(f"{_run_file(storage_uri, name)} cannot be read ({reason}), so whether --name {name} was begun "
                      "with the same settings cannot be told; try again or give another --name") from error  # fmt: skip
    if begun.digest != digest:
        raise Refused(f"--name {name} was begun with other settings or videos; give another --name, or "
                      f"{_to_begin_anew(storage_uri, name)}")  # fmt: skip
    return begun


def _to_begin_anew(storage_uri: str, name: str) -> str:
    return f"remove {run_folder(storage_uri, name)} and {run_folder(storage_uri, name)}.json to begin it anew"


def remember_run(plan: Plan, begun: Begun) -> None:
    storage.write_bytes_atomically(
        _run_file(plan.config.storage, plan.name), json.dumps(dataclasses.asdict(begun)).encode()
    )


def as_begun(plan: Plan, clips: Clips) -> Clips:
    """The clips that the run was begun with: those of videos that could not be decoded then stay left out, or the
    epochs before and after would be of two trainings. Raises Broken where a video that it learns from is gone."""
    begun = begun_run(plan.config.storage, plan.name, plan.digest)
    if begun is None or begun.undecodable is None:
        remember_run(plan, Begun(plan.digest, begun and begun.mlflow_run, clips.undecodable))
        return clips
    lost = [(video_id, why) for video_id, why in clips.undecodable.items() if video_id not in begun.undecodable]
    if lost:
        raise Broken(f"{len(lost)} videos that run {plan.name} learns from cannot be decoded any more, such as "
                     f"{lost[0][0]}: {lost[0][1]}; put them back, or "
                     f"{_to_begin_anew(plan.config.storage, plan.name)}")  # fmt: skip
    back = clips.table["video_id"].isin(begun.undecodable.keys())
    if back.any():
        console.print(f"{int(back.sum())} videos that could not be decoded when run {plan.name} began stay left out; "
                      f"{_to_begin_anew(plan.config.storage, plan.name)}")  # fmt: skip
    return dataclasses.replace(clips, table=clips.table[~back], undecodable=begun.undecodable)


@contextlib.contextmanager
def held(plan: Plan) -> Iterator[None]:
    """The run is this job's alone, and what is kept of it is for going on: not of one that diverged or was refused
    before its first epoch. Raises Refused where another job has it."""
    kept = storage.absolute(plan.config.storage)
    folder = f"{run_folder(kept, plan.name)}.lock"
    try:
        with FolderLock(folder):
            try:
                yield
            except Diverged:
                forget(kept, plan.name)
                raise
            except Refused:
                if not storage.exists(run_folder(kept, plan.name)):
                    forget(kept, plan.name)
                raise
    finally:
        if storage.scheme_of(folder) == "file":
            with contextlib.suppress(OSError):
                Path(folder).rmdir()  # it is not empty where another job has it
