"""Every benchmark, one after another: python -m benchmarks (long). One that cannot run here says why."""

import subprocess
import sys

BENCHMARKS = (
    ("benchmarks.decode",),
    ("benchmarks.product_map",),
    ("benchmarks.saliency",),
    ("benchmarks.localisation",),
    ("benchmarks.faithfulness",),
    ("benchmarks.engagement",),
    ("benchmarks.overlay",),
    ("benchmarks.report",),
    ("benchmarks.training",),
    ("benchmarks.peer",),
    ("benchmarks.lift",),
    ("benchmarks.efficiency",),
    ("benchmarks.scale",),
    ("benchmarks.chaos",),
    ("benchmarks.first_run",),
)
TIMEOUT_S = 4 * 3600


def main() -> None:
    failed = []
    for arguments in BENCHMARKS:
        print(f"\n== python -m {' '.join(arguments)}", flush=True)
        if subprocess.run([sys.executable, "-m", *arguments], timeout=TIMEOUT_S).returncode != 0:
            failed.append(arguments[0])
    if failed:
        sys.exit(f"did not finish: {', '.join(failed)}")


if __name__ == "__main__":
    main()
