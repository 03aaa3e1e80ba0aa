"""Stage 2 and what stands beside it, against published numbers and answers worked out by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pyfixest as pf
import pytest
import statsmodels.api as sm
from scipy import stats

from analysis.bootstrap import both_stages
from analysis.event_study import event_study
from analysis.lifts import lifts
from analysis.negative_controls import OTHER, SHIFTED, mistaken_scores, negative_controls
from analysis.panel import Panel
from analysis.prediction import out_of_sample
from analysis.robust import huber_fits, permuted_slope, slope_of
from analysis.sample import Sample, sample_of
from analysis.specifications import specification_curve
from analysis.stage_one import LAGS, LEADS, controls_of, lifts_against, stage_one, week_numbers
from analysis.stage_two import huber, influential, rivals, row_of, stage_two, vif
from analysis.staggered import average_lifts, weekly_panel
from analysis.treatment import Pool, Treatment
from catalog.errors import Refused

DAYS, TREATED, CONTROLS = 98, 40, 60
DRAWS = 199


def made_up(effect: float, seed: int = 0) -> tuple[Panel, Treatment, Sample, np.ndarray]:
    """Lifts are ``effect`` times PE and noise; the panel, who is treated, the sample and the true lifts."""
    rng = np.random.default_rng(seed)
    products = np.array([f"p{i:03d}" for i in range(TREATED + CONTROLS)])
    search = rng.normal(50, 5, (len(products), DAYS))
    revenue = rng.normal(100, 30, (len(products), 1)) + rng.normal(0, 3, (len(products), DAYS)) + 0.3 * search
    revenue += np.cumsum(rng.normal(0, 0.5, DAYS))
    pe, e, p = rng.random((3, TREATED))
    truth = effect * (pe - pe.mean()) + rng.normal(0, 1, TREATED)
    first = rng.integers(20, 75, TREATED)
    revenue[:TREATED] += truth[:, None] * (np.arange(DAYS) >= first[:, None])
    days = np.datetime64("2025-01-01") + np.arange(DAYS)
    panel = Panel(products, days, revenue, search[..., None], ("search_index",))
    videos = pd.DataFrame(
        {
            "video_id": [f"v{i}" for i in range(TREATED)], "product_id": products[:TREATED],
            "creator_id": [f"c{i % 8}" for i in range(TREATED)], "post_day": days[first - 1],
            "pe_score": pe / 50, "e_score": e, "p_score": p, "pe_score_raw": pe / 9,
            "shares": rng.integers(1, 99, TREATED), "price": rng.random(TREATED),
            "category": [("tea", "toy", "rare")[min(i % 9, 2)] for i in range(TREATED)],
        }
    )  # fmt: skip
    controls = np.arange(TREATED, len(products))
    treated = Treatment(videos, np.arange(TREATED), first, controls, controls[10:], {})
    table = stage_one(panel, treated).table
    options = {"controls": ("price",), "category": "category", "scores_uri": "scores"}
    return panel, treated, sample_of(videos, table, **options), truth


@pytest.fixture(scope="module")
def planted() -> tuple[Panel, Treatment, Sample, np.ndarray]:
    return made_up(20.0)


def test_stage_one_finds_the_planted_lifts_and_its_intervals_hold_them():
    found, inside = [], []
    for seed in range(5):
        panel, treated, _, truth = made_up(20.0, seed)
        table = stage_one(panel, treated).table
        found.append(np.corrcoef(table["lift"], truth)[0, 1])
        inside.append(((table["ci_low"] <= truth) & (truth <= table["ci_high"])).mean())
    assert min(found) > 0.95
    assert 0.9 < np.mean(inside) < 0.99  # 200 intervals of 95%


def test_a_lift_of_nothing_has_any_permutation_p():
    panel, treated, _, _ = made_up(0.0)
    never = dataclasses.replace(treated, row=treated.controls[:TREATED], controls=treated.controls[TREATED:])
    table = stage_one(panel, never).table
    assert table["p_permutation"].min() >= 1 / 21
    assert 0.3 < table["p_permutation"].mean() < 0.7
    assert 0.3 < table["pretrend_p"].mean() < 0.7


def test_a_drift_before_the_post_is_seen():
    panel, treated, _, _ = made_up(0.0)
    drift = np.maximum(0, np.arange(DAYS) - treated.first[:, None] + 40) * 0.8
    panel.revenue[:TREATED] += drift
    found = stage_one(panel, treated)
    assert found.table["pretrend_p"].median() <= 2 / (CONTROLS + 1)
    events = event_study(found.weeks)
    assert events.leads_p < 1e-6
    week = events.table.set_index("week")["mean"]
    assert week[-2] - week[-3] == pytest.approx(7 * 0.8, abs=0.5)


def test_chosen_products_get_the_lifts_that_they_get_among_all(planted):
    panel, treated, _, _ = planted
    chosen = np.array([3, 17])
    pd.testing.assert_frame_equal(
        stage_one(panel, treated, chosen).table,
        stage_one(panel, treated).table.iloc[chosen].reset_index(drop=True),
    )


def test_products_not_yet_treated_are_compared_in_the_days_before_they_are(planted):
    panel, treated, _, _ = planted
    i = int(np.argmin(treated.first))
    rows, days = np.flatnonzero(treated.first >= treated.first[i] + 30), slice(0, treated.first[i] + 30)
    y, x = panel.revenue[:, days], panel.covariates[:, days]
    controls = controls_of(Panel(panel.products, panel.days[days], y, x, panel.names), rows)
    expected = lifts(y[[i]], x[[i]], treated.first[[i]], controls).lift[0]
    found = lifts_against(panel, treated, Pool.NOT_YET_TREATED)
    assert found[i] == pytest.approx(expected)
    assert np.isnan(found[int(np.argmax(treated.first))])


def test_scores_are_scaled_over_the_panel_and_small_categories_share_an_effect(planted):
    _, _, sample, _ = planted
    assert (sample.pe.min(), sample.pe.max()) == (0, 1)
    assert sample.frame["ExP"].to_numpy() == pytest.approx((sample.frame["E"] * sample.frame["P"]).to_numpy())
    assert sample.categories == ("category_tea", "category_toy")  # beside "rare", which is most
    assert list(sample.columns()) == ["PE", "E", "P", "ExP", "PE, E, P, ExP", "with controls"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.head(9), "9 lifts can be estimated, at least 10"),
        (lambda v: v.assign(pe_score=0.25), "pe_score is 0.25 for all 40 videos"),
    ],
)
def test_samples_that_say_nothing_are_refused(planted, change, says: str):
    panel, treated, _, _ = planted
    videos = change(treated.videos)
    table = stage_one(panel, treated).table.head(len(videos))
    with pytest.raises(Refused, match=says):
        sample_of(videos, table, controls=(), category=None, scores_uri="scores")


def test_columns_with_more_terms_than_lifts_are_left_out(planted):
    _, _, sample, _ = planted
    few = dataclasses.replace(sample, frame=sample.frame.head(7))
    assert "with controls" not in few.columns()
    assert "PE, E, P, ExP" in few.columns()
    constant = dataclasses.replace(sample, constant=("E",))
    assert list(constant.columns()) == ["PE", "P", "ExP"]


def test_every_estimator_recovers_the_planted_slope_and_none_a_slope_of_nothing(planted):
    _, _, sample, _ = planted
    table = stage_two(sample, DRAWS, 0)
    pe = table[(table["column"] == "PE") & (table["term"] == "PE") & (table["estimator"] != "Spearman")]
    assert len(pe) == 8
    assert ((pe["ci_low"] < 20) & (pe["ci_high"] > 20) & (pe["ci_low"] > 0)).all()
    spearman = row_of(table, "Spearman", "PE", "PE")
    assert spearman["estimate"] == pytest.approx(stats.spearmanr(sample.pe, sample.lift).statistic)
    _, _, nothing, _ = made_up(0.0)
    table = stage_two(nothing, DRAWS, 0)
    pe = table[(table["column"] == "PE") & (table["term"] == "PE")]
    assert ((pe["ci_low"] < 0) & (pe["ci_high"] > 0)).all()


def test_theil_sen_is_the_median_of_pairwise_slopes():
    frame = pd.DataFrame({"PE": [0.0, 1, 2, 3, 4], "lift": [0.0, 1, 2, 3, 100]})
    frame = frame.assign(se_hac=1.0, creator=list("abcde"), video_id=list("abcde"), product_id=list("abcde"))
    found = stage_two(Sample(frame.assign(E=0.0, P=0.0, ExP=0.0), (), (), ("E", "P", "ExP")), DRAWS, 0)
    assert row_of(found, "Theil-Sen", "PE", "PE")["estimate"] == 1


def test_the_video_that_carries_the_slope_is_named(planted):
    _, _, sample, _ = planted
    frame = sample.frame.copy()
    frame.loc[5, ["PE", "lift"]] = 1.0, 2000.0
    table = influential(dataclasses.replace(sample, frame=frame))
    top = table.iloc[0]
    assert top["video_id"] == "v5"
    rest = frame.drop(index=5)
    assert top["slope_without"] == pytest.approx(np.polyfit(rest["PE"], rest["lift"], 1)[0])
    assert top["huber_without"] == pytest.approx(huber(rest, ["PE"]).params["PE"])
    assert top["share"] > 0.9


def test_variance_inflation_is_one_over_one_minus_r2(planted):
    _, _, sample, _ = planted
    table = vif(sample)
    frame = sample.frame
    r2 = sm.OLS(frame["PE"], sm.add_constant(frame[["E", "P", "ExP"]])).fit().rsquared
    found = table[(table["column"] == "PE, E, P, ExP") & (table["term"] == "PE")]["vif"].iloc[0]
    assert found == pytest.approx(1 / (1 - r2))


def test_rivals_are_told_by_standard_deviations(planted):
    _, _, sample, _ = planted
    table = rivals(sample, DRAWS, 0).set_index("name")
    assert list(table.index) == ["PE", "E", "P", "shares"]
    assert table["estimate"]["PE"] == pytest.approx(
        huber(sample.frame, ["PE"]).params["PE"] * sample.pe.std(ddof=1), rel=1e-5
    )
    assert table["p"]["PE"] == 1 / (1 + DRAWS)
    assert table["p"]["shares"] > 0.01


def test_slopes_of_many_resamples_are_those_of_rlm_and_polyfit():
    rng = np.random.default_rng(1)
    x = rng.random((4, 50))
    y = 3 * x + rng.standard_t(1.5, (4, 50))
    for i in range(4):
        expected = sm.RLM(y[i], sm.add_constant(x[i]), sm.robust.norms.HuberT()).fit(maxiter=500, tol=1e-12)
        assert huber_fits(x, y).slope[i] == pytest.approx(expected.params[1], rel=1e-5)
        assert huber_fits(x, y).residual[i] == pytest.approx(np.asarray(expected.resid), abs=1e-5)
        assert slope_of(x, y, np.ones_like(x))[i] == pytest.approx(np.polyfit(x[i], y[i], 1)[0])


def test_the_sandwich_is_hc3_where_huber_is_least_squares():
    rng = np.random.default_rng(1)
    x, y = rng.lognormal(size=(2, 30)), rng.normal(size=(2, 30))
    found = huber_fits(x, y, tuning=1e9)
    for i in range(2):
        expected = sm.OLS(y[i], sm.add_constant(x[i])).fit(cov_type="HC3")
        assert found.slope[i] == pytest.approx(expected.params[1])
        assert found.error[i] == pytest.approx(expected.bse[1])


def test_permutations_keep_their_level_where_one_video_holds_most_of_the_variance():
    """400 samples of no effect: 5% are rejected, give or take three standard errors."""
    rng = np.random.default_rng(0)
    rejected = []
    for seed in range(400):
        x, y = rng.lognormal(size=40), rng.standard_t(2.5, 40)
        y[rng.integers(40)] = 40
        _, _, low, high, p = permuted_slope(x, y, 199, seed)
        assert (p <= 0.05) == (low > 0 or high < 0)
        rejected.append(p <= 0.05)
    assert 0.017 < np.mean(rejected) < 0.083


def test_the_bootstrap_of_both_stages_is_about_as_wide_as_hc3_where_lifts_are_well_known(planted):
    panel, treated, sample, _ = planted
    table = both_stages(panel, treated, sample, draws=600, seed=0)
    row, hc3 = table.iloc[0], row_of(stage_two(sample, DRAWS, 0), "OLS, HC3", "PE", "PE")
    assert row["estimate"] == pytest.approx(hc3["estimate"])
    assert row["se"] == pytest.approx(hc3["se"], rel=0.15)
    assert row["ci_low"] < 20 < row["ci_high"]
    again = both_stages(panel, treated, sample, draws=600, seed=0)
    pd.testing.assert_frame_equal(table, again)


def test_event_study_by_hand():
    weeks = np.full((12, LEADS + LAGS), np.nan)
    rng = np.random.default_rng(0)
    weeks[:, :LEADS] = rng.normal(size=(12, LEADS))
    weeks[:, LEADS] = np.arange(12.0)
    found = event_study(weeks)
    assert found.table["week"].tolist() == week_numbers()[: LEADS + 1].tolist()
    last = found.table.iloc[-1]
    assert (last["mean"], last["n"]) == (5.5, 12)
    assert last["se"] == pytest.approx(np.std(np.arange(12), ddof=1) / np.sqrt(12))
    leads = weeks[:, :LEADS]
    t2 = 12 * leads.mean(axis=0) @ np.linalg.inv(np.cov(leads.T)) @ leads.mean(axis=0)
    assert found.leads_f == pytest.approx(t2 * (12 - 4) / (4 * 11))
    # that drift gives the test a power of 0.8
    drift = found.detectable * (week_numbers()[:LEADS] + 1)
    noncentral = 12 * drift @ np.linalg.inv(np.cov(leads.T)) @ drift
    assert stats.ncf.sf(stats.f.ppf(0.95, 4, 8), 4, 8, noncentral) == pytest.approx(0.8, abs=1e-6)


def test_staggered_estimators_find_a_lift_that_all_have():
    panel, treated, _, truth = made_up(0.0)
    panel.revenue[:TREATED] += 6.0 * (np.arange(DAYS) >= treated.first[:, None])
    weeks = DAYS // 7 - -(-treated.first // 7)  # whole treated weeks, which these averages weigh by
    expected = np.average(6 + truth, weights=weeks)
    averages, weights = average_lifts(panel, treated)
    estimate = averages.set_index("estimator")["estimate"]
    assert estimate.iloc[1:].to_numpy() == pytest.approx(expected, abs=0.3)
    assert 4 < estimate["two-way fixed effects"] < 6.5
    assert (averages["ci_low"] > 0).all()
    assert weights["weight"].sum() == pytest.approx(1)
    # Goodman-Bacon's theorem: the weighted comparisons are what two-way fixed effects estimate
    assert (weights["weight"] * weights["estimate"]).sum() == pytest.approx(estimate["two-way fixed effects"])


def test_averages_are_those_of_pyfixest():
    panel, treated, _, _ = made_up(5.0)
    averages, _ = average_lifts(panel, treated)
    table, frame = averages.set_index("estimator"), weekly_panel(panel, treated)
    fixed = pf.feols("revenue ~ treated | product + week", frame, vcov={"CRV1": "product"})
    assert table["estimate"]["two-way fixed effects"] == pytest.approx(fixed.coef()["treated"])
    assert table["se"]["two-way fixed effects"] == pytest.approx(fixed.se()["treated"], rel=0.01)
    two_stage = pf.did2s(
        frame.assign(treated=frame["treated"].astype(bool)), yname="revenue", first_stage="~ 0 | product + week",
        second_stage="~ i(treated, ref=False)", treatment="treated", cluster="product",
    )  # fmt: skip
    assert table["estimate"]["two-stage (Gardner, did2s)"] == pytest.approx(two_stage.coef().iloc[0], rel=1e-4)
    assert table["se"]["two-stage (Gardner, did2s)"] == pytest.approx(two_stage.se().iloc[0], rel=0.02)


def test_negative_controls_do_not_predict_and_a_mistaken_one_that_does_is_seen(planted):
    _, _, sample, _ = planted
    rng = np.random.default_rng(0)
    table = negative_controls(sample, pd.DataFrame({"chance": rng.random(TREATED), "leak": sample.lift}))
    p = table.set_index("score")["p"]
    assert p["PE"] < 1e-6
    assert p["chance"] > 0.01
    assert p["leak"] < 1e-6


def test_mistaken_scores_lay_e_over_a_p_that_is_not_its_own():
    left, right = [0, 0, 0.5, 0, 0.5, 1, 0, 1], [0.5, 0, 1, 0, 1, 1, 0.5, 1]
    videos = pd.DataFrame(
        {
            "video_id": ["a", "b"],
            "product_quads": [[left, None], [right, right]],
            "e_per_second": [[0.2, 0.6], [0.4, 0.4]],
        }
    )
    E = np.zeros((2, 112, 112), np.float32)
    E[1, :, :56] = 1.0  # the left half of the second second
    found = mistaken_scores(videos, [("a", E)], seed=0)
    # P of "a" half its length later lies on the left half in its second second
    # and that of "b" where it was
    assert found[SHIFTED].tolist() == pytest.approx([0.25, 0.0])
    # "a" with the mask of "b": right halves, where its E is 0; "b", without a map, with that of "a"
    assert found[OTHER].tolist() == pytest.approx([0.0, 0.4 * 0.5 / 2])


def test_the_curve_has_every_choice_once(planted):
    panel, treated, sample, _ = planted
    table = specification_curve(panel, treated, sample, {"other": panel})
    # 3 pools with and without search, and another rebuild; 2 scalings of E, 3 columns, 2 estimators
    assert len(table) == (3 * 2 + 1) * 2 * 3 * 2
    assert table["estimate"].is_monotonic_increasing
    one = table[
        (table["compared with"] == str(Pool.PUBLISHED)) & (table["covariates"] == "with") & (table["columns"] == "PE")
        & (table["estimator"] == "OLS, HC3") & (table["E scaled"] == "by video")
    ]  # fmt: skip
    assert one["estimate"].nunique() == 1
    assert one["estimate"].iloc[0] == pytest.approx(np.polyfit(sample.pe, sample.lift, 1)[0])


def test_creators_that_the_fit_has_not_seen_are_predicted(planted):
    _, _, sample, _ = planted
    table, importance = out_of_sample(sample, seed=0)
    figures = table.set_index(["model", "columns"])
    assert figures["srcc"]["Huber", "PE"] > 0.9
    assert figures["srcc"]["Huber", "shares"] < 0.5
    assert importance["term"].iloc[0] == "PE"
    assert importance["share"].iloc[0] > 0.8
    few = dataclasses.replace(sample, frame=sample.frame.assign(creator="one"))
    assert out_of_sample(few, seed=0)[0].empty
