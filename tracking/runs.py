"""MLflow in one place: where runs go, how they are opened, and that tracking which fails never ends a job."""

import contextlib
import functools
import getpass
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from catalog import storage
from tracking.names import ABOUT, LOCAL_STORE, PROJECT
from tracking.views import VIEW_TAG, saved_view

log = logging.getLogger(__name__)

MAX_TAG = 8000
"""characters that MLflow takes"""
FAILURES_IN_A_ROW = 3
SILENCE_S = 600.0
"""for which a server that failed so often is not asked: a question may take a minute"""
CUT = "\n\n*Cut here; the rest is among the run's artifacts.*"

Result = TypeVar("Result")


def connect() -> str:
    """Point MLflow at MLFLOW_TRACKING_URI, or at SQLite under mlruns/; returns the tracking URI.

    A server that does not answer is given up on soon (MLflow's own defaults wait for many minutes).
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # hints to MLflow's callers in code; a job's user can do nothing about them
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        LOCAL_STORE.mkdir(exist_ok=True)
        uri = f"sqlite:///{LOCAL_STORE / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return uri


def ui_command() -> str:
    """The shell command that shows the runs."""
    uri = mlflow.get_tracking_uri()
    return f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else f"open {uri}"


def git_commit() -> str:
    """The commit of this checkout with ``-dirty`` where it was changed; in a submitted job, which has no
    checkout, the name that Ray gave to the uploaded working directory."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=PROJECT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return PROJECT.name if PROJECT.name.startswith("_ray_pkg_") else "unknown"


def table_name(uri: str) -> str:
    """What people call a table: ``world/videos`` of ``s3://bucket/world/videos.parquet``."""
    folder, _, file = storage.absolute(uri).rpartition("/")
    return f"{folder.rpartition('/')[2]}/{file.partition('.')[0]}"


def shown(value: float) -> float:
    """Whole numbers as they are, others to five digits: the UI shows all sixteen, which hides what differs."""
    return float(value) if float(value).is_integer() else float(f"{value:.5g}")


def fitting(markdown: str, most: int) -> str:
    """Markdown of at most so many characters, cut after a line where it is longer."""
    if len(markdown) <= most:
        return markdown
    return markdown[: markdown.rfind("\n", 0, most - len(CUT))] + CUT


def run_link(run_id: str, text: str) -> str:
    """Markdown that leads to a run within the UI, wherever that is served."""
    return f"[{text}](#/runs/{run_id})"


def version_link(name: str, version: str) -> str:
    """Markdown that leads to a registered version within the UI."""
    return f"[{name} version {version}](#/models/{name}/versions/{version})"


def _never_fatal(method: Callable[..., Result]) -> Callable[..., Result | None]:
    @functools.wraps(method)
    def safe(self: "Run", *args: Any, **kwargs: Any) -> Result | None:
        if not self.is_heard:
            return None
        try:
            result = method(self, *args, **kwargs)
        except Exception as error:  # MLflow raises many kinds, from many layers
            self.failed(method.__name__, error)
            return None
        self.failures = 0
        return result

    return safe


class Run:
    """One MLflow run. Every method is safe to call: what fails is said in the log and the job goes on.

    ``run_id`` is None where no run could be opened; then all methods do nothing. After three failures in a row they do
    nothing for ten minutes, so that a server which comes back is found and one that does not costs little.
    """

    def __init__(self, run_id: str | None):
        self.run_id = run_id
        self.failures = 0
        self._silent_until = 0.0

    @property
    def is_heard(self) -> bool:
        return self.run_id is not None and time.monotonic() >= self._silent_until

    def ask_again(self) -> None:
        """Before what must not be lost."""
        self._silent_until = 0.0

    @property
    def _id(self) -> str:
        assert self.run_id is not None
        return self.run_id

    def failed(self, what: str, error: Exception) -> None:
        self.failures += 1
        log.warning("MLflow: %s failed, the job goes on without it: %s", what, str(error).split("\n")[0][:300])
        if self.failures >= FAILURES_IN_A_ROW:
            log.warning("MLflow: not asked for %g s after %d failures in a row", SILENCE_S, self.failures)
            self._silent_until = time.monotonic() + SILENCE_S

    @_never_fatal
    def params(self, params: Mapping[str, Any]) -> None:
        values = [Param(k, str(v)) for k, v in params.items()]
        MlflowClient().log_batch(self._id, params=values)

    @_never_fatal
    def metrics(self, metrics: Mapping[str, float], step: int = 0) -> bool:
        """Whether they arrived (None where not)."""
        now = get_current_time_millis()
        values = [Metric(k, shown(v), now, step) for k, v in metrics.items()]
        MlflowClient().log_batch(self._id, metrics=values)
        return True

    @_never_fatal
    def steps(self, metric: str) -> set[int]:
        """The steps at which ``metric`` was logged already, by an earlier attempt of this run."""
        return {point.step for point in MlflowClient().get_metric_history(self._id, metric)}

    @_never_fatal
    def tags(self, tags: Mapping[str, str]) -> None:
        MlflowClient().log_batch(self._id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    @_never_fatal
    def artifact(self, path: Path, folder: str | None = None) -> None:
        MlflowClient().log_artifact(self._id, str(path), folder)

    @_never_fatal
    def dictionary(self, content: dict[str, Any], file: str) -> None:
        MlflowClient().log_dict(self._id, content, file)

    @_never_fatal
    def text(self, content: str, file: str) -> None:
        MlflowClient().log_text(self._id, content, file)

    @_never_fatal
    def file(self, content: bytes, file: str) -> None:
        folder, _, name = file.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, name)
            path.write_bytes(content)
            MlflowClient().log_artifact(self._id, str(path), folder or None)

    @_never_fatal
    def description(self, markdown: str) -> None:
        """What the UI shows above a run's parameters."""
        MlflowClient().set_tag(self._id, "mlflow.note.content", fitting(markdown, MAX_TAG))

    @_never_fatal
    def figure(self, figure: Any, file: str) -> None:
        MlflowClient().log_figure(self._id, figure, file)

    @_never_fatal
    def table_input(self, name: str, source: str, table: Any, context: str) -> None:
        """Log a pandas table as the run's dataset (its digest and schema, not its rows)."""
        dataset = mlflow.data.from_pandas(table, source=source, name=name)  # pyright: ignore
        tags = [InputTag("mlflow.data.context", context)]
        # by the client: mlflow.start_run would say on leaving that the run has finished
        MlflowClient().log_inputs(self._id, [DatasetInput(dataset._to_mlflow_entity(), tags)])

    @_never_fatal
    def model_input(self, logged_model: str) -> None:
        """The model that this run used: the UI shows each at the other."""
        MlflowClient().log_inputs(self._id, models=[LoggedModelInput(logged_model)])

    @_never_fatal
    def children(self) -> dict[str, str]:
        """Name -> id of the runs below this one."""
        experiment = MlflowClient().get_run(self._id).info.experiment_id
        below = MlflowClient().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self._id}'")
        return {str(run.info.run_name): run.info.run_id for run in below}

    def finish(self, status: str) -> None:
        self.ask_again()
        self._finish(status)

    @_never_fatal
    def _finish(self, status: str) -> None:
        MlflowClient().set_terminated(self._id, status)


@contextlib.contextmanager
def open_run(
    experiment: str, name: str, tags: Mapping[str, str], resume_id: str | None = None, parent: Run | None = None
) -> Iterator[Run]:
    """A run of ``experiment``, FINISHED or FAILED with the block; ``resume_id`` goes on with an earlier one. The UI
    shows it below its ``parent``."""
    run = Run(None)
    try:
        uri = connect()
        client = MlflowClient()
        run.run_id = None if resume_id is None else _taken_up(client, resume_id)
        if run.run_id is None:
            run.run_id = client.create_run(_experiment_id(client, experiment, uri), run_name=name).info.run_id
    except Exception as error:
        log.warning(
            "MLflow at %s cannot be used, the job goes on without it: %s",
            os.environ.get("MLFLOW_TRACKING_URI", LOCAL_STORE), str(error).split("\n")[0][:300],
        )  # fmt: skip
    above = {"mlflow.parentRunId": parent.run_id} if parent is not None and parent.run_id else {}
    run.tags(_origin() | above | dict(tags))
    try:
        yield run
    except BaseException as error:
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.finish("FINISHED")


def _origin() -> dict[str, str]:
    """What the UI shows of where a run comes from, by MLflow's own names, and the code for its table."""
    main = sys.modules["__main__"].__spec__
    commit = git_commit()
    command = f"python -m {main.name}" if main is not None else Path(sys.argv[0]).name
    origin = {"mlflow.source.type": "JOB", "mlflow.source.name": command, "mlflow.source.git.commit": commit}
    with contextlib.suppress(OSError, KeyError):  # of a user without a name, as in a container
        origin["mlflow.user"] = getpass.getuser()
    return origin | {"git_commit": commit}


def _taken_up(client: MlflowClient, run_id: str) -> str | None:
    try:
        client.update_run(run_id, "RUNNING")
        return run_id
    except MlflowException:  # deleted meanwhile, or of another server
        return None


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # a server keeps artifacts where it was told to; a local database would put them under the current directory
    database = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else None
    location = (Path(database).absolute().parent / "artifacts" / name).as_uri() if database else None
    about = {
        "mlflow.note.content": ABOUT[name],
        "mlflow.experimentKind": "custom_model_development",
        VIEW_TAG: saved_view(name),
    }
    return client.create_experiment(name, artifact_location=location, tags=about)
