"""Do the intervals of jobs.lift cover what was planted? Panels drawn like the published one; and what a study costs.

    python -m benchmarks.lift
    python -m benchmarks.lift --parts coverage --panels 200

golden: every estimator beside a published number or another implementation.
coverage: 259 treated products, 2,426 controls, 180 days; sales by heavy-tailed levels, autocorrelated noise, a weekly
and a common course, search interest; lifts of the published mean, spread and extremes (one video holds some 83% of
their variance) around slope * PE. For each estimator of the slope of PE how often its 95% interval holds the slope
that was planted, and how often 0 is rejected. lifts: the same for the lifts of single products. speed: stage 1 beside
a loop of pyfixest calls, and a study with its bootstrap. One thread.
"""

import argparse
import dataclasses
import time
import warnings

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy import signal, stats

from analysis.bootstrap import both_stages
from analysis.lifts import Controls, hac_se, lifts
from analysis.panel import Mended, Panel
from analysis.sample import Sample
from analysis.stage_one import stage_one
from analysis.stage_two import ESTIMATORS, single_scores
from analysis.study import Inputs
from analysis.study import study as whole_study
from analysis.treatment import Treatment
from benchmarks.cpu_time import cpu_model
from benchmarks.golden import print_golden

TREATED, CONTROLS, DAYS = 259, 2426, 180
PUBLISHED_SLOPE = 68.27
MEAN_LIFT, EXTREME_LIFT, OTHER_SPREAD = 2.02, 699.0, 19.3
SCENARIOS = {
    "no effect": (0.0, False),
    "published effect": (PUBLISHED_SLOPE, False),
    "published effect, noise grows with PE": (PUBLISHED_SLOPE, True),
}
COVERAGE_DRAWS = 199
"""permutations and bootstrap draws a panel, fewer than a study makes"""
PARTS = ("golden", "coverage", "lifts", "speed")
console = Console(width=160)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A made-up panel and its truth; the first TREATED products are treated."""

    revenue: np.ndarray
    search: np.ndarray
    first: np.ndarray
    pe: np.ndarray
    lift: np.ndarray


def draw(rng: np.random.Generator, slope: float, grows: bool, controls: int = CONTROLS) -> Drawn:
    products = TREATED + controls
    level = np.exp(rng.normal(1.5, 1.1, products))
    noise = autoregressive(rng.normal(0, np.sqrt(1 - 0.7**2), (products, DAYS)), 0.7)
    search = 50 + autoregressive(rng.normal(0, 4, (products, DAYS)), 0.85)
    course = np.sin(2 * np.pi * np.arange(DAYS) / 7) + np.cumsum(rng.normal(0, 0.2, DAYS))
    revenue = level[:, None] * (1 + 0.25 * noise) + 0.02 * (search - 50) + course
    pe = rng.lognormal(0, 1, TREATED)
    pe = (pe - pe.min()) / np.ptp(pe)
    by_chance = stats.t.rvs(2.5, size=TREATED, random_state=rng) * OTHER_SPREAD / np.sqrt(5)
    if grows:
        by_chance *= 0.5 + pe / pe.mean() / 2
    by_chance[rng.integers(TREATED)] = EXTREME_LIFT
    lift = slope * pe + by_chance
    lift += MEAN_LIFT - lift.mean()
    first = rng.integers(30, 150, TREATED)
    revenue[:TREATED] += lift[:, None] * (np.arange(DAYS) >= first[:, None])
    return Drawn(revenue, search, first, pe, lift)


def autoregressive(shocks: np.ndarray, memory: float) -> np.ndarray:
    return np.asarray(signal.lfilter([1], [1, -memory], shocks, axis=1))


def frame_of(drawn: Drawn) -> pd.DataFrame:
    """What stage 2 is given: lift, se_hac, PE and a creator for every five videos."""
    x = drawn.search[..., None]
    found = lifts(drawn.revenue[:TREATED], x[:TREATED], drawn.first, Controls(drawn.revenue[TREATED:], x[TREATED:]))
    creator = [f"creator{i // 5}" for i in range(TREATED)]
    return pd.DataFrame({"lift": found.lift, "se_hac": hac_se(found, drawn.first), "PE": drawn.pe, "creator": creator})


def panel_of(drawn: Drawn) -> tuple[Panel, Treatment, Sample]:
    names = np.array([f"p{i:05d}" for i in range(len(drawn.revenue))])
    days = np.datetime64("2025-01-01") + np.arange(DAYS)
    panel = Panel(names, days, drawn.revenue, drawn.search[..., None], ("search_index",))
    ids = [f"v{i:05d}" for i in range(TREATED)]
    rng = np.random.default_rng(0)
    videos = pd.DataFrame(
        {
            "video_id": ids, "product_id": names[:TREATED], "post_day": days[drawn.first - 1],
            "product_quads": [[[0.3, 0.3, 0.7, 0.3, 0.7, 0.7, 0.3, 0.7]] * 10] * TREATED,
            "e_per_second": list(rng.random((TREATED, 10))),
        }
    )  # fmt: skip
    rows = np.arange(TREATED, len(names))
    treated = Treatment(videos, np.arange(TREATED), drawn.first, rows, rows, {})
    frame = frame_of(drawn).assign(video_id=ids, product_id=names[:TREATED], PE_raw=drawn.pe)
    scores = rng.random((TREATED, 2))
    frame = frame.assign(E=scores[:, 0], P=scores[:, 1], ExP=scores.prod(axis=1))
    return panel, treated, Sample(frame, (), (), ())


def coverage(panels: int, resampled: int, draws: int, seed: int) -> None:
    for name, (slope, grows) in SCENARIOS.items():
        rng = np.random.default_rng(seed)
        found: dict[str, list[tuple[float, float, float]]] = {}
        spread = []
        for i in range(panels):
            drawn = draw(rng, slope, grows)
            frame = frame_of(drawn)
            spread.append((frame["lift"].std(), drawn.pe.std()))
            for estimator, fit in ESTIMATORS.items():
                fitted = fit(frame, ["PE"])
                low, high = fitted.conf_int().loc["PE"]
                found.setdefault(estimator, []).append((fitted.params["PE"], low, high))
            for row in single_scores(Sample(frame, (), (), ("E", "P", "ExP")), draws, i):
                if row["estimator"] != "Spearman":
                    found.setdefault(row["estimator"], []).append((row["estimate"], row["ci_low"], row["ci_high"]))
            if i < resampled:
                panel, treated, sample = panel_of(drawn)
                for row in both_stages(panel, treated, sample, draws, i).itertuples(index=False):
                    found.setdefault(str(row.estimator), []).append((row.estimate, row.ci_low, row.ci_high))  # pyright: ignore
        lift_sd, pe_sd = np.mean(spread, axis=0)
        table = Table(title=f"{name}: slope {slope:g}, SD of lifts {lift_sd:.1f}, of PE {pe_sd:.2f}")
        for head in ("estimator", "panels", "mean", "SD", "width", "covers", "rejects 0"):
            table.add_column(head, justify="left" if head == "estimator" else "right")
        for estimator, rows in found.items():
            value, low, high = np.array(rows).T
            covers, rejects = (low <= slope) & (slope <= high), (low > 0) | (high < 0)
            table.add_row(
                estimator, str(len(rows)), f"{value.mean():.2f}", f"{value.std():.2f}", f"{np.median(high - low):.1f}",
                f"{covers.mean():.1%}", f"{rejects.mean():.1%}",
            )  # fmt: skip
        console.print(table)


def single_lifts(panels: int, seed: int) -> None:
    """Intervals of single lifts, and the share of the lifts' errors that each would reject."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(panels):
        drawn = draw(rng, PUBLISHED_SLOPE, False)
        panel, treated, _ = panel_of(drawn)
        table = stage_one(panel, treated).table
        error = np.abs(table["lift"] - drawn.lift)
        reach = stats.t.ppf(0.975, DAYS - 1)
        rows.append(
            [
                (error <= reach * table["se"]).mean(),
                (error <= reach * table["se_hac"]).mean(),
                (error <= (table["ci_high"] - table["ci_low"]) / 2).mean(),
                table["se"].isna().mean(),
            ]
        )
    clustered, hac, permuted, missing = np.mean(rows, axis=0)
    console.print(
        f"95% intervals of single lifts, {panels * TREATED:,} of them: clustered by product and day, as published, "
        f"{clustered:.1%} (no error at all in {missing:.1%}); HAC {hac:.1%}; permutation {permuted:.1%}"
    )


def speed(draws: int, loops: int, seed: int) -> None:
    from pyfixest.estimation.api.feols import feols

    drawn = draw(np.random.default_rng(seed), PUBLISHED_SLOPE, False)
    panel, treated, sample = panel_of(drawn)
    started = time.perf_counter()
    first = stage_one(panel, treated)
    ours = time.perf_counter() - started
    frame = pd.DataFrame(
        {
            "revenue": panel.revenue.ravel(), "search": drawn.search.ravel(),
            "product": np.repeat(np.arange(len(panel.products)), DAYS),
            "day": np.tile(np.arange(DAYS), len(panel.products)),
        }
    )  # fmt: skip
    started, furthest = time.perf_counter(), 0.0
    for i in range(loops):
        rows = frame[(frame["product"] == i) | (frame["product"] >= TREATED)]
        rows = rows.assign(treated=((rows["product"] == i) & (rows["day"] >= drawn.first[i])).astype(float))
        fitted = feols("revenue ~ treated + search | product + day", rows, vcov={"CRV1": "product + day"})
        furthest = max(furthest, abs(fitted.coef()["treated"] - first.table["lift"][i]))
    loop = (time.perf_counter() - started) / loops * TREATED
    mended = Mended(None, 0, 0, 0, [], 0, {})
    started = time.perf_counter()
    whole_study(Inputs(panel, mended, treated, {}, None, draws, seed), first, sample, ())
    rest = time.perf_counter() - started
    console.print(
        f"stage 1, {TREATED} lifts with their permutations over {CONTROLS} controls: {ours:.1f} s; a loop of pyfixest "
        f"calls for the lifts and clustered errors alone {loop:.0f} s ({loops} timed), {loop / ours:.0f} times as "
        f"long; lifts differ by at most {furthest:.1e}. All after it, with a bootstrap of {draws}: {rest:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--panels", type=int, default=1000, help="panels a scenario (default 1000)")
    parser.add_argument("--resampled", type=int, default=300, help="of them also by bootstrap of both stages")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap in the timed study (default 1000)")
    parser.add_argument("--loops", type=int, default=5, help="pyfixest calls that are timed (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of statsmodels, where Huber's weights take long to settle
    console.print(cpu_model())
    if "golden" in arguments.parts:
        print_golden(console)
    if "coverage" in arguments.parts:
        coverage(arguments.panels, arguments.resampled, COVERAGE_DRAWS, arguments.seed)
    if "lifts" in arguments.parts:
        single_lifts(max(2, arguments.panels // 50), arguments.seed)
    if "speed" in arguments.parts:
        speed(arguments.draws, arguments.loops, arguments.seed)


if __name__ == "__main__":
    main()
