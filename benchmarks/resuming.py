"""How long a job takes to go on with a folder of many finished rows, and how much memory; prints a line of JSON.

Run by benchmarks.scale, a process each.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.sleeping import SECONDS, SleepingEngage, SleepingPrepare, catalogue, job_of
from catalog.errors import Refused
from catalog.schemas import SCORES
from jobs.command import resolved
from jobs.score import ScoreConfig
from scoring.output import OutputFolder
from scoring.plan import Plan, plan_scoring
from scoring.rows import Provenance
from tracking import registry

BLOCK = 16
LEFT = 1000
"""videos that are still to be scored"""


def planned(config: ScoreConfig) -> Plan:
    return plan_scoring(
        config.videos, config.products, config.output, registry.load(config.model), config.sampling, config.product,
        config.maps, resolved(config), config.limits, None, False, 0,
    )  # fmt: skip


def finished_rows(config: ScoreConfig, plan: Plan, rows: int) -> None:
    """What a job that was killed near its end leaves behind: a file a block."""
    os.environ |= {"BENCHMARK_PREPARE_S": "0", "BENCHMARK_ENGAGE_S": "0", SECONDS: "30"}
    provenance = Provenance(config.model, "", None, plan.config_hash, "benchmark")
    prepare, engage = SleepingPrepare(), SleepingEngage(None, None, provenance, False)
    block = engage(pa.concat_tables(prepare(plan.videos.slice(0, BLOCK)))).select(SCORES.names)
    folder = Path(config.output, "scores")
    folder.mkdir(parents=True)
    for start in range(0, rows, BLOCK):
        part = block.set_column(0, SCORES.field("video_id"), plan.videos["video_id"].slice(start, BLOCK))
        pq.write_table(part, folder / f"{start:020}.parquet", compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--make", action="store_true", help="make the folder instead")
    flags = parser.parse_args()
    if flags.make:
        config = catalogue(flags.folder, flags.rows + LEFT)
        finished_rows(config, planned(config), flags.rows)
        return
    config = job_of(flags.folder)
    begun = time.monotonic()
    plan = planned(config)
    planned_s = time.monotonic() - begun
    OutputFolder(plan.output.uri).begin(plan.config, plan.config_hash, plan.rows, plan.retried)
    if plan.finished != flags.rows or plan.videos.num_rows != LEFT:
        raise Refused(f"{plan.finished} finished rows were found, {flags.rows} made")
    found = {"planned_s": planned_s, "begun_s": time.monotonic() - begun, "parts": -(-flags.rows // BLOCK)}
    print(json.dumps(found | {"driver_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main()
