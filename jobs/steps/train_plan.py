"""What a training run is to be: its flags and tables, checked and read, and whether it was begun before."""

import dataclasses
import hashlib
import io
import json
import re
from pathlib import Path

import pandas as pd

from catalog import storage
from catalog.errors import Refused, check_positive
from catalog.sampling import check_sampling
from catalog.tables import check_references, read_products, read_videos
from jobs.command import console, read_flags
from jobs.train import TrainConfig
from tracking.runs import Run, table_name
from training.models import EngagementModel, ModelSpec, load_pretrained
from training.networks import ARCHITECTURES
from training.run import check_enough, run_folder
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
    columns = ["video_id", "creator_id", "label", "weight", "side"]
    data_digest = hashlib.sha256(examples[columns].to_csv(index=False).encode()).hexdigest()
    swept = {} if config.sweep is None else read_flags(Path(config.sweep), "--sweep", SWEEP_EXAMPLE)
    told = json.dumps(how(settings) | {"sweep": swept}, default=str, sort_keys=True)
    digest = hashlib.sha256((told + data_digest).encode())
    name = config.name or f"train-{digest.hexdigest()[:10]}"
    return Plan(config, settings, spec, examples, shared, digest.hexdigest()[:10], data_digest[:16], name, init_weights)


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


def _run_file(storage_uri: str, name: str) -> str:
    return f"{run_folder(storage.absolute(storage_uri), name)}.json"


def unfinished_run(storage_uri: str, name: str, digest: str) -> str | None:
    """The MLflow run to go on with: its file is there until the run is done. Raises Refused where the run of this
    name learns otherwise or from other videos: its weights may know the videos that are now held out."""
    try:
        begun = json.loads(storage.read_bytes(_run_file(storage_uri, name)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = storage.reason(error) if isinstance(error, OSError) else "it is broken"
        raise Refused(f"{_run_file(storage_uri, name)} cannot be read ({reason}), so whether --name {name} was begun "
                      "with the same settings cannot be told; try again or give another --name") from error  # fmt: skip
    if begun["digest"] != digest:
        raise Refused(
            f"--name {name} was begun with other settings or videos; give another --name, or remove "
            f"{run_folder(storage_uri, name)} and {run_folder(storage_uri, name)}.json to begin it anew"
        )
    return begun["mlflow_run"]


def remember_run(storage_uri: str, name: str, digest: str, run: Run) -> None:
    begun = {"digest": digest, "mlflow_run": run.run_id}
    storage.write_bytes_atomically(_run_file(storage_uri, name), json.dumps(begun).encode())
