"""Stage 1 beside reference implementations: pyfixest for lifts and clustered errors, statsmodels for HAC errors."""

import numpy as np
import pandas as pd
import pyfixest as pf
import pytest
import statsmodels.api as sm

from analysis.lifts import (
    Controls,
    hac_lags,
    hac_se,
    lifts,
    placebo_lifts,
    resampled_lifts,
    two_way_se,
)

FIRST = np.array([25, 41])


def draw(covariates: int, products: int = 30, days: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Revenue (products, days) and covariates that are related to it and to one another."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(products, days, covariates)).cumsum(axis=1)
    y = rng.normal(80, 30, (products, 1)) + rng.normal(0, 3, days) + rng.normal(0, 2, (products, days)).cumsum(axis=1)
    y += x.sum(axis=2) * 0.7
    for product, first in enumerate(FIRST):
        y[product, first:] += 5
    return y, x


def by_pyfixest(y: np.ndarray, x: np.ndarray, treated: int, first: int):
    """One treated product; y (N, T), x (N, T, K) hold it and the controls."""
    frame = pd.DataFrame({"y": y.ravel(), "product": np.repeat(np.arange(len(y)), y.shape[1])})
    frame["day"] = np.tile(np.arange(y.shape[1]), len(y))
    frame["treated"] = ((frame["product"] == treated) & (frame["day"] >= first)).astype(float)
    names = [f"x{k}" for k in range(x.shape[2])]
    frame[names] = x.reshape(len(frame), x.shape[2])
    terms = " + ".join(["treated", *names])
    return pf.feols(f"y ~ {terms} | product + day", frame, vcov={"CRV1": "product + day"})


def test_a_lift_without_covariates_is_a_difference_of_differences():
    controls = Controls(np.array([[1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 6.0, 8.0]]), np.zeros((2, 4, 0)))
    found = lifts(np.array([[10.0, 12.0, 20.0, 22.0]]), np.zeros((1, 4, 0)), np.array([2]), controls)
    # treated: 21 - 11; controls: (2 - 1 + 7 - 3) / 2
    assert found.lift == pytest.approx([10 - 2.5])
    before, after = found.gap[0, :2].mean(), found.gap[0, 2:].mean()
    assert after - before == pytest.approx(7.5)


@pytest.mark.parametrize("covariates", [0, 1, 2])
def test_lifts_slopes_and_clustered_errors_are_those_of_pyfixest(covariates: int):
    y, x = draw(covariates)
    controls = Controls(y[2:], x[2:])
    found = lifts(y[:2], x[:2], FIRST, controls)
    for i, first in enumerate(FIRST):
        one = np.r_[i, 2 : len(y)]
        reference = by_pyfixest(y[one], x[one], 0, int(first))
        assert found.lift[i] == pytest.approx(reference.coef()["treated"], rel=1e-9)
        assert found.slope[i] == pytest.approx(reference.coef().drop("treated").to_numpy(), rel=1e-8)
        error = two_way_se(y[i], x[i], int(first), found, i, controls)
        assert error == pytest.approx(reference.se()["treated"], rel=1e-6)


@pytest.mark.parametrize("covariates", [0, 2])
def test_a_placebo_lift_is_that_of_a_control_beside_all_others(covariates: int):
    y, x = draw(covariates)
    found = placebo_lifts(25, Controls(y[2:], x[2:]))
    for j in (0, 11, 27):
        reference = by_pyfixest(y[2:], x[2:], j, 25)
        assert found.lift[j] == pytest.approx(reference.coef()["treated"], rel=1e-9)


def test_the_gap_holds_the_lift_and_its_hac_error_is_that_of_statsmodels():
    y, x = draw(1)
    found = lifts(y[:2], x[:2], FIRST, Controls(y[2:], x[2:]))
    errors = hac_se(found, FIRST)
    for i, first in enumerate(FIRST):
        post = (np.arange(60) >= first).astype(float)
        options = {"maxlags": hac_lags(60), "use_correction": True}
        reference = sm.OLS(found.gap[i], sm.add_constant(post)).fit(cov_type="HAC", cov_kwds=options)
        assert found.lift[i] == pytest.approx(reference.params[1])
        assert errors[i] == pytest.approx(reference.bse[1])


@pytest.mark.parametrize("covariates", [0, 2])
def test_resampled_controls_are_controls_that_are_there_several_times(covariates: int):
    y, x = draw(covariates)
    times = np.random.default_rng(0).multinomial(28, np.full(28, 1 / 28), size=4)
    found = resampled_lifts(y[:2], x[:2], FIRST, Controls(y[2:], x[2:]), times.astype(float))
    for drawn, counts in zip(found, times, strict=True):
        rows = np.repeat(np.arange(2, 30), counts)
        assert drawn == pytest.approx(lifts(y[:2], x[:2], FIRST, Controls(y[rows], x[rows])).lift)


def test_the_clustered_error_leaves_out_the_noise_of_the_treated_product():
    """Many quiet controls: the lift is as uncertain as the treated product is noisy, and only HAC says so."""
    rng = np.random.default_rng(3)
    y = rng.normal(0, 0.1, (400, 100))
    y[0] = rng.normal(0, 10, 100)
    controls = Controls(y[1:], np.zeros((399, 100, 0)))
    found = lifts(y[:1], np.zeros((1, 100, 0)), np.array([50]), controls)
    truth = 10 * np.sqrt(1 / 50 + 1 / 50)
    assert hac_se(found, np.array([50]), lags=0)[0] == pytest.approx(truth, rel=0.2)
    clustered = two_way_se(y[0], np.zeros((100, 0)), 50, found, 0, controls)
    assert np.isnan(clustered) or clustered < truth / 10


def test_covariates_that_say_nothing_more_change_no_lift():
    y, x = draw(1)
    weekly = np.broadcast_to(np.arange(60)[None, :, None] % 7, (30, 60, 1))  # the days' effects know it
    for more in (x * 1e6, np.full_like(x, 3.0), weekly):
        both = np.concatenate([x, more], axis=2)
        found = lifts(y[:2], both[:2], FIRST, Controls(y[2:], both[2:]))
        alone = lifts(y[:2], x[:2], FIRST, Controls(y[2:], x[2:]))
        assert found.lift == pytest.approx(alone.lift)
        error = two_way_se(y[0], both[0], 25, found, 0, Controls(y[2:], both[2:]))
        assert np.isfinite(error)
