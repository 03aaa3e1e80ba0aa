"""The model registry: how engagement models are stored, found and promoted."""

import dataclasses
import hashlib
import logging
import platform
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from catalog.errors import Refused
from tracking.names import (
    ABOUT_MODEL,
    BASELINE_GAIN,
    BASELINE_GAIN_LOW,
    BEST_BASELINE,
    CHALLENGER,
    CHAMPION,
    CHAMPION_GAIN,
    COMPARED_WITH,
    MODEL_NAME,
    PROJECT,
    SHUFFLED,
)
from tracking.runs import Run, connect, fitting, run_link, version_link

log = logging.getLogger(__name__)

CHECKPOINT = "model.pt"
HELD_OUT_PREDICTIONS = "held_out_predictions.csv"
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""what MLflow says of a model, and of an alias, that it does not have"""
MAX_DESCRIPTION = 5000
"""characters that MLflow takes"""
REQUIREMENTS = ("torch", "numpy", "mlflow")
LIBRARIES = ("torch", "ray", "mlflow", "numpy", "av", "opencv-python-headless", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model's checkpoint, fetched by the driver and handed to the workers as bytes."""

    uri: str
    """as asked for"""
    version: str
    """the registry's version, or the digest of a plain file"""
    digest: str
    """SHA-256 of the checkpoint: the identity of the weights"""
    checkpoint: bytes
    training_run: str | None = None
    """id of the MLflow run that it comes from"""
    logged_model: str | None = None
    """MLflow's id of the model"""

    @property
    def name(self) -> str:
        """Short, for people: ``model 3``."""
        return f"model {self.version}" if self.uri.startswith("models:/") else f"{Path(self.uri).name} {self.version}"

    @property
    def link(self) -> str:
        """Markdown that leads to it in the UI, and to the run that trained it."""
        is_registered = self.uri.startswith("models:/") and self.version.isdigit()
        named = version_link(MODEL_NAME, self.version) if is_registered else f"`{self.uri}`"
        return named + (f", from this {run_link(self.training_run, 'training run')}" if self.training_run else "")


def register(run: Run, checkpoint: Path, example: np.ndarray, unit: str, tags: dict[str, str], card: str) -> str | None:
    """Log the model to ``run`` and register it as the challenger; returns its version, None where MLflow failed.

    checkpoint: model.pt; other files of its folder are stored beside it. example: uint8 (1, S, H, W, 3), a clip that
    shows the input's form. unit: of the output, for people. card: Markdown, the version's description.
    """
    if run.run_id is None or not run.is_heard:
        return None
    try:
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, *example.shape[2:]), "clips")]),
            Schema([TensorSpec(np.dtype(np.float32), (-1,), unit)]),
        )
        with mlflow.start_run(run_id=run.run_id, log_system_metrics=False), warnings.catch_warnings(record=True):
            # recorded, so not shown: hints to the model's author, which MLflow lets no filter hold back
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(PROJECT / "training" / "pyfunc.py"),
                artifacts={"checkpoint": str(checkpoint)}
                | {file.stem: str(file) for file in checkpoint.parent.iterdir() if file != checkpoint},
                code_paths=[str(PROJECT / "training"), str(PROJECT / "catalog")],
                signature=signature,
                input_example={"clips": example},
                pip_requirements=[f"{name}=={metadata.version(name)}".split("+")[0] for name in REQUIREMENTS],
                registered_model_name=MODEL_NAME,
                tags=tags,
            )
        client = MlflowClient()
        client.update_run(run.run_id, "RUNNING")  # start_run has said on leaving that it has finished
        version = str(info.registered_model_version)
        for key, value in tags.items():
            client.set_model_version_tag(MODEL_NAME, version, key, value)
        client.update_model_version(MODEL_NAME, version, fitting(card, MAX_DESCRIPTION))
        client.update_registered_model(MODEL_NAME, ABOUT_MODEL)
        client.set_registered_model_alias(MODEL_NAME, CHALLENGER, version)
        return version
    except Exception as error:
        run.failed("registering the model", error)
        return None


def library_versions() -> dict[str, str]:
    """Tags of what a model was made with."""
    return {"library/python": platform.python_version()} | {f"library/{n}": metadata.version(n) for n in LIBRARIES}


def load(uri: str) -> StoredModel:
    """Fetch a model by registry URI (``models:/pe-engagement@champion``, ``models:/pe-engagement/3``), run URI
    (``runs:/ID/model``) or the path of a checkpoint file. Raises Refused with the next step."""
    if "://" not in uri and not re.match(r"^(models|runs):/", uri):
        path = Path(uri)
        if not path.is_file():
            raise Refused(
                f"--model {uri}: no such checkpoint file, and not a model URI; "
                f"expected models:/{MODEL_NAME}@{CHAMPION}, models:/{MODEL_NAME}/VERSION or a checkpoint file"
            )
        content = path.read_bytes()
        return StoredModel(uri, hashlib.sha256(content).hexdigest()[:12], hashlib.sha256(content).hexdigest(), content)
    connect()
    try:
        version = version_of(uri)
        origin = _origin(uri, version)
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError) as error:
        raise Refused(f"--model {uri}: {_first_line(error)}. {_known_models()}") from error
    found = sorted(folder.rglob(CHECKPOINT))
    if not found:
        raise Refused(f"--model {uri} holds no {CHECKPOINT}: it was not registered by jobs.train")
    content = found[0].read_bytes()
    return StoredModel(uri, version, hashlib.sha256(content).hexdigest(), content, *origin)


def _origin(uri: str, version: str) -> tuple[str | None, str | None]:
    """Ids of the training run and of the logged model, as far as they are known."""
    if uri.startswith("runs:/"):
        return version, None
    client, name = MlflowClient(), re.split(r"[@/]", uri.removeprefix("models:/"))[0]
    try:
        if name == version:  # a logged model's own id
            return client.get_logged_model(name).source_run_id, name
        registered = client.get_model_version(name, version)
    except MlflowException:  # as of models:/NAME/latest
        return None, None
    logged = re.fullmatch(r"models:/(m-\w+)", registered.source or "")
    return registered.run_id, logged and logged[1]


def card_of(model: StoredModel) -> str | None:
    """The model card of a registered version; None where there is none."""
    if model.logged_model is None:
        return None
    try:
        return MlflowClient().get_model_version(MODEL_NAME, model.version).description
    except MlflowException:
        return None


def shuffled_control(uri: str) -> StoredModel | None:
    """The same network trained on shuffled labels, out of the training run of a registered model; None where there
    is none, as of a checkpoint file or after ``--no-shuffled-control``."""
    match = re.match(r"^(models|runs):/", uri)
    if match is None:
        return None
    connect()
    client = MlflowClient()
    try:
        run_id = version_of(uri) if match[1] == "runs" else client.get_model_version(MODEL_NAME, version_of(uri)).run_id
        if not run_id or not client.list_artifacts(run_id, SHUFFLED):
            return None
        return load(f"runs:/{run_id}/{SHUFFLED}")
    except (MlflowException, Refused):
        return None


def promote(version: str, force: bool = False) -> None:
    """Make a registered version the champion, where it earned it on the videos that it was judged on.

    Raises Refused where there is no such version, and, unless by force, where it did not; a version that was forced
    says so in its tag ``promoted_by_force``.
    """
    connect()
    client = MlflowClient()
    champion = version_with(CHAMPION)
    try:
        tags = client.get_model_version(MODEL_NAME, version).tags
        objection = _objection(tags, champion) if version != champion else None
        if objection and not force:
            raise Refused(f"--version {version} {objection}; --force makes it the {CHAMPION} nonetheless")
        if objection:
            client.set_model_version_tag(MODEL_NAME, version, "promoted_by_force", objection)
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
    except MlflowException as error:
        raise Refused(f"--version {version}: {_first_line(error)}. {_known_models()}") from error


def _objection(tags: dict[str, str], champion: str | None) -> str | None:
    """Why a version with these tags should not become the champion."""
    if tags.get("split", "").startswith("random"):
        return "was judged on a random split: it has seen other videos of the same creators, which can flatter it"
    if BASELINE_GAIN_LOW not in tags:
        return "was never compared with models that need no video"
    if not float(tags[BASELINE_GAIN_LOW]) > 0:
        return (
            "does not predict better than what needs no video beyond chance (SRCC "
            f"{tags[BASELINE_GAIN]} higher than {tags[BEST_BASELINE]}, lower end of the 95% interval "
            f"{tags[BASELINE_GAIN_LOW]}), so its maps and scores may mean nothing"
        )
    if champion is None:
        return None
    if tags.get(COMPARED_WITH) != champion:
        return (
            f"was not compared with the present {CHAMPION}, version {champion}, but with "
            f"{tags.get(COMPARED_WITH, 'none')}, and was judged on other videos; training compares the two where they "
            "predict the same count from the same kind of clip, so train it anew"
        )
    if not float(tags[CHAMPION_GAIN]) > 0:
        return f"is no better than the present {CHAMPION}, version {champion} (SRCC {tags[CHAMPION_GAIN]} higher)"
    return None


def compared_anew(version: str) -> tuple[str, float, int] | None:
    """Compare a version with the present champion where both were judged on the same videos and labels, and tag it
    with what came of it: (champion, how much higher the version's SRCC is, videos). None where they were not, or where
    training has compared the two. Raises Refused where the registry cannot be read."""
    champion = version_with(CHAMPION)
    if champion in (None, version):
        return None
    client = MlflowClient()
    try:
        challenging, present = (client.get_model_version(MODEL_NAME, v) for v in (version, champion))
        digests = [model.tags.get("data_digest") for model in (challenging, present)]
        if challenging.tags.get(COMPARED_WITH) == champion or digests[0] is None or digests[0] != digests[1]:
            return None
        its, other = (_held_out_predictions(str(model.run_id)) for model in (challenging, present))
        both = its.merge(other, on="video_id", suffixes=("", "_other"))
        gain = float(both["the model"].corr(both["label"], "spearman")) - float(
            both["the model_other"].corr(both["label"], "spearman")
        )
        for name, value in {COMPARED_WITH: champion, CHAMPION_GAIN: f"{gain:.6g}"}.items():
            client.set_model_version_tag(MODEL_NAME, version, name, value)
    except (MlflowException, OSError) as error:
        raise Refused(f"--version {version}: {_first_line(error)}. {_known_models()}") from error
    return str(champion), gain, len(both)


def _held_out_predictions(run_id: str) -> pd.DataFrame:
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=HELD_OUT_PREDICTIONS)
    return pd.read_csv(path, dtype={"video_id": str})


def version_with(alias: str) -> str | None:
    """The version of pe-engagement that bears the alias; None where none does. Raises Refused where the registry
    cannot be read."""
    connect()
    try:
        return str(MlflowClient().get_model_version_by_alias(MODEL_NAME, alias).version)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise Refused(f"the registry at {mlflow.get_tracking_uri()} cannot be read: {_first_line(error)}") from error


def version_of(uri: str) -> str:
    if not uri.startswith("models:/"):
        return uri.removeprefix("runs:/").split("/")[0]
    name = uri.removeprefix("models:/")
    if "@" in name:
        name, alias = name.split("@", 1)
        return str(MlflowClient().get_model_version_by_alias(name, alias).version)
    return name.rsplit("/", 1)[-1]


def _known_models() -> str:
    try:
        versions: list[Any] = list(MlflowClient().search_model_versions(f"name='{MODEL_NAME}'"))
        aliases = MlflowClient().get_registered_model(MODEL_NAME).aliases if versions else {}
    except MlflowException:
        versions, aliases = [], {}
    if not versions:
        return f"No version of {MODEL_NAME} is registered at {mlflow.get_tracking_uri()}; run jobs.train first"
    named = ", ".join(sorted((str(v.version) for v in versions), key=int))
    return f"Registered versions of {MODEL_NAME}: {named}; aliases: {aliases or 'none'}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".")
