"""How models are judged: figures, intervals over creators, calibration, and the baselines that see no video."""

import numpy as np
import pandas as pd
import pytest

from training.baselines import baselines, metadata_features
from training.evaluation import HeldOut, advantage, calibration, evaluate, srcc


def held_out(label: list[float], creators: list[str | None] | None = None) -> HeldOut:
    return HeldOut([f"v{i}" for i in range(len(label))], creators or [None] * len(label), np.array(label))


def test_a_perfect_model_and_a_constant_one_have_the_figures_worked_out_by_hand() -> None:
    videos = held_out([2, 5, 8, 11, 14, 17])
    perfect = evaluate(videos, videos.label, seed=0).figures
    assert perfect["srcc"] == perfect["plcc"] == perfect["r2"] == pytest.approx(1)
    assert perfect["mae"] == perfect["nmse"] == pytest.approx(0)
    constant = evaluate(videos, np.full(6, 9.5), seed=0).figures
    assert constant["srcc"] == 0
    assert constant["r2"] == pytest.approx(0)
    assert constant["mae"] == pytest.approx(4.5)


def test_bootstrap_intervals_hold_the_figure_and_know_that_creators_videos_are_alike() -> None:
    random = np.random.default_rng(0)
    label = np.repeat(random.normal(size=12), 5)
    prediction = label + np.repeat(random.normal(size=12), 5)  # each creator is one draw, seen five times
    apart = evaluate(held_out(label.tolist()), prediction, seed=0).figures
    together = evaluate(held_out(label.tolist(), [f"c{i // 5}" for i in range(60)]), prediction, seed=0).figures
    for figures in (apart, together):
        assert -1 <= figures["srcc_low"] < figures["srcc"] < figures["srcc_high"] <= 1
    width = {k: f["srcc_high"] - f["srcc_low"] for k, f in (("apart", apart), ("together", together))}
    assert width["together"] > 1.5 * width["apart"]


def test_within_creator_srcc_ignores_what_creators_differ_in() -> None:
    """Right about the creators, wrong within a and b; c has too few videos to say anything."""
    videos = held_out([1, 2, 3, 101, 102, 103, 50, 51], ["a"] * 3 + ["b"] * 3 + ["c"] * 2)
    figures = evaluate(videos, np.array([3, 2, 1, 103, 102, 101, 50, 51.0]), seed=0).figures
    assert figures["within_creator_srcc"] == pytest.approx(-1)
    assert figures["srcc"] > 0.5
    assert np.isnan(evaluate(held_out([1, 2], ["a", "b"]), np.ones(2), seed=0).figures["within_creator_srcc"])


def test_advantage_is_the_difference_on_the_same_videos() -> None:
    random = np.random.default_rng(0)
    videos = held_out(random.normal(size=80).tolist())
    good, bad = (evaluate(videos, videos.label + noise * random.normal(size=80), seed=0) for noise in (0.3, 3))
    difference, low, high = advantage(good, bad)
    assert difference == pytest.approx(good.figures["srcc"] - bad.figures["srcc"])
    assert 0 < low < difference < high
    assert advantage(good, good) == (0, 0, 0)


def metadata(rows: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "creator_id": [f"c{i % 10}" for i in range(rows)],
            "followers": random.integers(1, 10**6, rows),
            "posted_at": pd.date_range("2026-01-01", periods=rows, freq="5h", tz="UTC"),
            "category": random.choice(["food", "toys"], rows),
            "likes": 0,
        }
    )
    hour = table["posted_at"].dt.hour
    reach = np.log1p(table["followers"])
    return table.assign(
        weight=1.0, label=0.2 * reach + 3 * (table["category"] == "toys") + 2 * (hour > 17), likes=lambda t: t["label"]
    )


def test_each_baseline_learns_what_it_sees_and_nothing_else() -> None:
    training, judged_on = metadata(400, 0), metadata(100, 1)
    found = baselines(training, judged_on, seed=0)
    assert list(found) == ["constant", "creator_mean", "followers", "metadata"]
    assert found["constant"] == pytest.approx(np.full(100, training["label"].mean()))
    means = training.groupby("creator_id")["label"].mean()
    assert found["creator_mean"] == pytest.approx([means[f"c{i % 10}"] for i in range(100)])
    skill = {name: srcc(judged_on["label"].to_numpy(), found[name]) for name in found}
    assert skill["metadata"] > 0.9 > 0.6 > skill["followers"] > 0.05
    assert list(metadata_features(training, 400)) == ["posted_hour", "posted_weekday", "followers", "category"]
    assert list(metadata_features(training, 400, ["followers"])) == ["posted_hour", "posted_weekday", "category"]


def test_baselines_of_a_bare_table_and_of_creators_never_seen() -> None:
    training = pd.DataFrame(
        {"creator_id": ["a", "a", None], "label": [1.0, 3, 5], "weight": 1.0, "followers": ["many", None, "few"]}
    )
    judged_on = pd.DataFrame({"creator_id": ["a", "z", None], "label": [0.0, 0, 0], "followers": [None, None, "many"]})
    found = baselines(training.drop(columns="followers"), judged_on.drop(columns="followers"), seed=0)
    assert {name: values.tolist() for name, values in found.items()} == {
        "constant": [3, 3, 3],
        "creator_mean": [2, 3, 3],
    }
    assert len(baselines(training, judged_on, seed=0)["metadata"]) == 3


def test_baselines_leave_out_columns_that_training_videos_do_not_have() -> None:
    training, judged_on = metadata(60, 0), metadata(20, 1)
    training = training.assign(followers=np.nan, posted_at=pd.NaT, price=np.nan, clicks=np.inf)
    judged_on = judged_on.assign(price=2.0, clicks=1.0)
    found = baselines(training, judged_on, seed=0)
    assert list(found) == ["constant", "creator_mean", "metadata"]
    both = pd.concat([training, judged_on], ignore_index=True)
    assert list(metadata_features(both, 60)) == ["category"]


def test_suspicious_videos_count_less_for_the_baselines() -> None:
    training = pd.DataFrame({"creator_id": ["a", "a"], "label": [0.0, 11.0], "weight": [1.0, 0.1]})
    found = baselines(training, pd.DataFrame({"creator_id": ["a", "b"], "label": 0.0, "weight": 1.0}), seed=0)
    assert found["constant"] == pytest.approx([1, 1])
    assert found["creator_mean"] == pytest.approx([1, 1])


def test_flags_with_unknown_entries_are_a_feature() -> None:
    table = pd.DataFrame({"label": range(4), "original": [True, None, False, True], "creator_id": "a", "weight": 1.0})
    assert metadata_features(table, 4)["original"].tolist()[::2] == [1, 0]


def test_calibration_cuts_by_prediction_and_holds_the_truth() -> None:
    random = np.random.default_rng(0)
    label = random.normal(size=205)
    videos = held_out(label.tolist(), [f"c{i % 20}" for i in range(205)])
    deciles = calibration(evaluate(videos, label + random.normal(scale=0.1, size=205), seed=0), seed=0)
    assert deciles["videos"].sum() == 205
    assert deciles["videos"].between(20, 21).all()
    assert deciles["predicted"].is_monotonic_increasing
    assert (deciles["true"] - deciles["predicted"]).abs().max() < 0.1
    assert (deciles["true_low"] <= deciles["true"]).all()
    assert (deciles["true"] <= deciles["true_high"]).all()
    few = calibration(evaluate(held_out([1, 2, 3]), np.array([3.0, 1, 2]), seed=0), seed=0)
    assert few["true"].tolist() == [2, 3, 1]
