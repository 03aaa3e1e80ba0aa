"""Every estimator of jobs.lift is that of a published result or of another implementation."""

import pytest

from analysis.stage_two import ESTIMATORS, RECOMMENDED
from analysis.staggered import average_lifts
from benchmarks.golden import Golden, golden_numbers, small_panel


@pytest.fixture(scope="module")
def golden() -> list[Golden]:
    return golden_numbers()


def test_every_figure_is_its_sources_to_the_digits_that_it_prints(golden: list[Golden]):
    assert [row for row in golden if not row.agrees] == []


def test_no_estimator_of_the_report_is_left_out(golden: list[Golden]):
    averages, _ = average_lifts(*small_panel())
    named = {row.estimator for row in golden}
    # winsorised is least squares of clipped lifts
    assert {*ESTIMATORS, RECOMMENDED, *averages["estimator"]} - named == {"winsorised 1%, HC3"}


def test_a_figure_that_differs_in_its_last_digit_does_not_agree():
    assert Golden("a", "b", "c", 0.8294, 0.82943, 4).agrees
    assert not Golden("a", "b", "c", 0.8294, 0.8295, 4).agrees
