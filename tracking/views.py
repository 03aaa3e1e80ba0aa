"""The columns of MLflow's tables of runs by which a stranger chooses, as a view that the UI offers under "Views".

Its own choice of columns shows not one metric. It keeps views as tags of the experiment, in the form below (MLflow
3.17); a UI that does not know this tag shows its own columns.
"""

import base64
import json
import time
import zlib

from tracking.names import COMPARE_RUNS, FAITHFULNESS_RUNS, LIFT_RUNS, SCORING_RUNS, TRAINING_RUNS

VIEW = "pe-score"
"""#/experiments/ID/runs?viewStateShareKey=pe-score"""
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
NAMES = {
    TRAINING_RUNS: "Choose a model",
    SCORING_RUNS: "Scored catalogues",
    LIFT_RUNS: "Verdicts",
    COMPARE_RUNS: "What moved",
    FAITHFULNESS_RUNS: "Trust in maps",
}
COLUMNS = {
    TRAINING_RUNS: {
        "metrics": (
            "eval/srcc", "eval/srcc_low", "eval/srcc_high", "eval/srcc_over_baseline_low", "eval/within_creator_srcc",
            "val/srcc", "train/loss",
        ),
        "params": ("architecture", "epochs", "learning_rate"),
        "tags": (
            "catalogue", "target", "residualized_on", "split", "data_digest", "registered_version", "git_commit",
        ),
    },
    SCORING_RUNS: {
        "metrics": (
            "videos/ok", "videos/not_localised", "videos/failed", "scores/mean_pe_score", "videos_per_hour",
            "core_seconds_per_video_minute",
        ),
        "params": ("method",),
        "tags": ("catalogue", "model_version", "output", "git_commit"),
    },
    LIFT_RUNS: {
        "metrics": ("supported", "pe/slope", "pe/ci_low", "pe/ci_high", "lifts", "doubts"),
        "params": (),
        "tags": ("catalogue", "sales", "model_version", "git_commit"),
    },
    COMPARE_RUNS: {
        "metrics": ("spearman/pe", "spearman/e", "spearman/p", "psi/pe", "psi/e", "psi/p"),
        "params": (),
        "tags": ("first", "second", "git_commit"),
    },
    FAITHFULNESS_RUNS: {
        "metrics": ("deletion/blur/gain_over_random", "insertion/blur/gain_over_random", "shuffled"),
        "params": ("method", "sample"),
        "tags": ("catalogue", "model_version", "git_commit"),
    },
}  # fmt: skip

FIRST_WIDTHS = {"attributes.`Run Name`": 240, "attributes.`Created`": 140}
"""of columns that are always there, pixels"""


def saved_view(experiment: str) -> str:
    """Value of ``VIEW_TAG``."""
    columns = [f"{kind}.`{name}`" for kind, names in COLUMNS[experiment].items() for name in names]
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [*FIRST_WIDTHS, *columns],
        "columnWidths": FIRST_WIDTHS | {column: _width(column) for column in columns},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now_ms = round(1000 * time.time())
    about = {"name": NAMES[experiment], "createdAt": now_ms, "updatedAt": now_ms}
    return json.dumps(about | {"state": f"deflate;{packed}"})


def _width(column: str) -> int:
    """Pixels, so that its head can be read."""
    return max(90, 7 * len(column.split("`")[1]) + 24)
