"""The words of a verdict: what it says, what it does not, and which doubts stand beside it."""

import dataclasses
import math

import pandas as pd
import pytest
from scipy import stats

from analysis.event_study import EventStudy
from analysis.stage_two import RECOMMENDED, ROBUST, ROW
from analysis.verdict import Evidence, amount, verdict


def controls(p: float, estimate: float) -> pd.DataFrame:
    names = ["PE", "P half a video later"]
    return pd.DataFrame({"score": names, "estimate": [9.0, estimate], "p": [0.001, p]})


def evidence(slope: float = 30.0, se: float = 5.0, beside: float = 30.0) -> Evidence:
    """A study of 100 lifts with nothing to doubt; intervals reach two errors to either side."""

    def row(estimator: str, column: str, estimate: float) -> tuple:
        return estimator, column, "PE", estimate, se, estimate - 2 * se, estimate + 2 * se, 0.01, 100, None

    rivals = [
        ("PE", 8, 6, 9, 0.001, 0.7, 0), ("E", 0, -1, 1, 0.8, 0.1, 0.3), ("P", 0, -1, 1, 0.9, 0, 1),
        ("shares", 3, 1, 4, 0.01, 0.4, 0),
    ]  # fmt: skip
    names = ["name", "estimate", "ci_low", "ci_high", "p", "spearman", "spearman_p"]
    return Evidence(
        stage_two=pd.DataFrame([row(RECOMMENDED, "PE", slope), row(ROBUST, "PE, E, P, ExP", beside)], columns=ROW),
        average=(2.0, -1.0, 5.0),
        events=EventStudy(pd.DataFrame(), 1.0, 0.5, 100, 3.0),
        rivals=pd.DataFrame(rivals, columns=names),
        negative_controls=controls(p=0.4, estimate=5.0),
        specification_curve=pd.DataFrame({"ci_low": [1.0] * 9 + [-1.0]}),
        influential=pd.DataFrame({"video_id": ["a", "b"], "slope_without": [25.0, 29.0], "share": [0.1, 0.2]}),
        out_of_sample=pd.DataFrame({"model": ["Huber"], "columns": ["PE"], "srcc": [0.6]}),
        unit=" CNY",
    )


def test_a_supported_verdict_says_how_much_and_what_it_does_not_say():
    found = verdict(evidence())
    assert found.supported
    assert found.doubts == []
    assert "grows by 30.0 CNY a day (95% interval 20.0 to 40.0)" in found.says[0]
    assert (
        "With the lift also went, each alone: shares; rank correlations up to 0.40, where the PE-score has 0.70."
        in (found.says)
    )
    assert (
        found.does_not_say[0]
        == "That videos as such raise sales is not shown: the average lift is 2.00 CNY a day (-1.00 to 5.00)."
    )
    assert "engagement anywhere in the picture and the product's time and size on screen" in found.does_not_say[1]
    # what reaches the interval's end in eight of ten studies, and four times the lifts for half of 30
    detectable = 2 * 5 + stats.norm.ppf(0.8) * 5
    assert found.smallest_detectable == pytest.approx(detectable)
    assert f"half the difference found here takes about {math.ceil(400 * (detectable / 30) ** 2)}" in found.data_needed


def test_an_interval_that_holds_0_supports_nothing_and_says_how_much_more_it_takes():
    found = verdict(evidence(slope=4.0))
    assert not found.supported
    assert "is not shown" in found.does_not_say[0]
    assert "which holds 0" in found.does_not_say[0]
    assert found.n_needed == math.ceil(100 * (found.smallest_detectable / 4) ** 2)
    assert f"would need about {found.n_needed:,}" in found.data_needed


def test_a_negative_slope_is_said_and_not_supported():
    found = verdict(evidence(slope=-30.0))
    assert not found.supported
    assert found.says[0].startswith("Products sold less")


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({"events": EventStudy(pd.DataFrame(), 9.0, 0.001, 100, 3.0)}, "drifted away from their controls"),
        (
            {"negative_controls": controls(p=0.01, estimate=5.0)},
            "“P half a video later”, predicts the lift",
        ),
        ({"specification_curve": pd.DataFrame({"ci_low": [1.0, -1.0]})}, "Only 50% of 2 reasonable ways"),
        (
            {"influential": pd.DataFrame({"video_id": ["a", "b"], "slope_without": [25.0, 29.0], "share": [0.1, 0.8]})},
            "Video b alone holds 80% of the lifts' variance",
        ),
        (
            {"influential": pd.DataFrame({"video_id": ["a"], "slope_without": [-1.0], "share": [0.1]})},
            "Without video a the least-squares slope has the other sign",
        ),
        (
            {"out_of_sample": pd.DataFrame({"model": ["Huber"], "columns": ["PE"], "srcc": [-0.1]})},
            "does not rank the lifts",
        ),
    ],
)
def test_doubts_are_told(change: dict, doubt: str):
    found = verdict(dataclasses.replace(evidence(), **change))
    assert len(found.doubts) == 1
    assert doubt in found.doubts[0]


def test_a_pe_that_stands_in_for_its_parts_is_doubted():
    (doubt,) = verdict(evidence(beside=1.0)).doubts
    assert doubt.startswith("Beside E, P and ExP the PE-score does not predict the lift")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (-12.345, "-12.3"), (0.01234, "0.0123"), (0.0000001, "0.000000")],
)
def test_amounts_have_three_figures(value: float, text: str):
    assert amount(value) == text


def test_a_mistaken_score_that_goes_the_other_way_is_no_doubt() -> None:
    against = dataclasses.replace(evidence(), negative_controls=controls(p=0.01, estimate=-5.0))
    assert verdict(against).doubts == verdict(evidence()).doubts
