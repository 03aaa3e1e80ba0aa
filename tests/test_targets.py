"""What is learned from a videos table: labels, who is left out or weighs less, what is taken out, and the split."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from catalog.counts import parse_counts
from catalog.errors import Refused
from training.baselines import baselines
from training.evaluation import srcc
from training.residuals import fit_residualizer
from training.settings import SplitConfig, TargetConfig
from training.splits import HELD_OUT, LEFT_OUT, OLDER, TRAINING, VALIDATION, overlaps, sides
from training.suspicious import suspicions
from training.targets import columns_to_residualize, fit_adjustment, labelled

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tiktok_vn"
START = datetime(2026, 1, 1, tzinfo=UTC)


def videos_table(shares: list[int | None], creators: list[str | None], **columns: list) -> pa.Table:
    ids = [f"v{i}" for i in range(len(shares))]
    fixed = {"video_id": ids, "video_uri": [f"/{i}.mp4" for i in ids], "creator_id": creators}
    return pa.table(fixed | {"shares": pa.array(shares, pa.int64())} | columns)


def posted(days: list[float]) -> list[datetime]:
    return [START + timedelta(days=day) for day in days]


def labels_of(table: pa.Table, **settings) -> dict[str, float]:
    chosen = labelled(table, "videos.csv", TargetConfig(**settings)).table
    return dict(zip(chosen["video_id"], chosen["label"], strict=True))


def test_the_target_is_log1p_of_the_count_and_videos_without_it_are_counted() -> None:
    table = videos_table([0, 9, None, 99, 1, 2, 3, 4, 5, 6], [f"c{i % 4}" for i in range(10)])
    labels = labels_of(table)
    assert labelled(table, "videos.csv", TargetConfig()).left_out == {"without shares": 1}
    assert labels["v0"] == 0
    assert labels["v1"] == pytest.approx(np.log(10))
    assert labels["v3"] == pytest.approx(np.log(100))


def test_a_rate_is_per_thousand_views_and_needs_some() -> None:
    views: list = [1000, 2000, 0, None, *[500] * 8]
    table = videos_table([9, 9, 9, 9, *range(8)], ["a", "b"] * 6, views=views)
    labels = labels_of(table, target="shares_per_view")
    assert labels["v0"] == pytest.approx(np.log1p(9))
    assert labels["v1"] == pytest.approx(np.log1p(4.5))
    assert "v2" not in labels
    assert "v3" not in labels
    assert len(labels) == 10


def test_young_videos_are_left_out_by_when_their_counts_were_taken() -> None:
    days: list = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    table = videos_table(list(range(12)), ["a", "b"] * 6, posted_at=[*posted(days[:11]), None])
    chosen = labelled(table, "v.csv", TargetConfig(min_age_days=3, as_of="2026-01-11"))
    assert chosen.table["video_id"].tolist() == [f"v{i}" for i in range(8)]
    assert chosen.left_out == {"of unknown age": 1, "younger than 3 days": 3}
    each = table.append_column("scraped_at", pa.array([t + timedelta(days=i % 5) if t else None
                                                       for i, t in enumerate([*posted(days[:11]), None])]))  # fmt: skip
    by_own = labelled(each, "v.csv", TargetConfig(min_age_days=0.5)).table
    assert by_own["video_id"].tolist() == [f"v{i}" for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert len(labelled(table, "v.csv", TargetConfig(min_age_days=3)).table) <= 11  # as of now


def test_counts_that_contradict_one_another_are_named_and_weigh_less() -> None:
    counts = pd.DataFrame(
        {
            "likes": [10, 200, 200_000, 99_999, 5],
            "shares": [1, 3, 0, 0, None],
            "comments": [1, 1, 7, 1, 1],
            "views": [100, 100, 10**7, 10**7, None],
        }
    )
    reasons = suspicions(counts).tolist()
    assert reasons == ["", "more likes than views", "shares 0 beside 100,000 likes or more", "", ""]
    table = videos_table([1, 3, 0, *range(9)], ["a", "b", "c"] * 4, likes=[10, 200, 200_000, *[10] * 9],
                         views=[100, 100, 10**7, *[100] * 9])  # fmt: skip
    chosen = labelled(table, "v.csv", TargetConfig(suspicious_weight=0.2)).table
    assert chosen["weight"].tolist() == [1, 0.2, 0.2, *[1] * 9]


def test_a_ratio_far_off_its_own_tier_of_creators_is_suspicious() -> None:
    random = np.random.default_rng(0)
    followers = np.repeat([1000.0, 500_000.0], 200)
    views = random.integers(10_000, 100_000, 400)
    share = np.where(followers < 10_000, 0.1, 0.01) * np.exp(random.normal(scale=0.2, size=400))
    likes = (views * share).astype(int)
    likes[300] = views[300] // 10  # usual among the small, not here
    found = suspicions(pd.DataFrame({"likes": likes, "views": views, "followers": followers}))
    assert found[found != ""].index.tolist() == [300]
    assert "likes per views is +1" in found[300]
    assert (suspicions(pd.DataFrame({"likes": likes[290:310], "views": views[290:310]})) == "").all()  # too few to tell


@pytest.mark.parametrize(
    ("shares", "creators", "message"),
    [
        ([1, 2, None, 4], ["a", "b", "c", "d"], "3 of 4 videos can be learned from .1 without shares.; at least 8"),
        ([7] * 10, [f"c{i}" for i in range(10)], "all shares are 7"),
        (list(range(10)), ["a"] * 10, "one creator"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(shares: list, creators: list, message: str) -> None:
    with pytest.raises(Refused, match=message):
        chosen = labelled(videos_table(shares, creators), "videos.csv", TargetConfig())
        sides(chosen.table, "videos.csv", SplitConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"winsorize": 0.3}, "--winsorize is 0.3"),
        ({"suspicious_weight": 0}, "--suspicious-weight is 0"),
        ({"min_age_days": -1}, "--min-age-days is -1"),
        ({"as_of": "2026-01-01"}, "needs --min-age-days"),
        ({"as_of": "soon", "min_age_days": 1}, "--as-of soon is no date"),
        ({"min_age_days": 1}, "posted_at"),
        ({"residualize": ("followers",)}, "--residualize followers: v.csv has no such column"),
        ({"residualize": ("posted_hour",)}, "--residualize posted_hour"),
        ({"residualize": ("creator_id,shares,shares",)}, "the target shares itself"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused(settings: dict, message: str) -> None:
    times = [None] * 10 if "as_of" not in settings else posted(list(range(10)))
    table = videos_table(list(range(10)), ["a", "b"] * 5, posted_at=pa.array(times, pa.timestamp("us", "UTC")))
    with pytest.raises(Refused, match=message):
        labelled(table, "v.csv", TargetConfig(**settings))


def test_few_videos_and_unknown_creators_are_warned_of() -> None:
    chosen = labelled(videos_table(list(range(9)), [None] * 9), "v.csv", TargetConfig())
    assert any("9 videos are too few" in warning for warning in chosen.warnings)
    assert any("9 videos have no creator_id" in warning for warning in chosen.warnings)


def creators_and_reach(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """400 videos of 40 creators and 60 of creators with one video; (table, label, what is not explained)."""
    random = np.random.default_rng(seed)
    creator = np.repeat(np.arange(40), 10)
    own = random.normal(scale=2, size=100)
    table = pd.DataFrame(
        {
            "creator_id": [f"c{i}" for i in creator] + [f"s{i}" for i in range(60)],
            "followers": np.exp(random.normal(9, 1.5, 460)).astype(int),
            "posted_hour": random.integers(0, 24, 460),
            "weight": 1.0,
        }
    )
    inside = random.normal(scale=0.5, size=460)
    of_creator = np.concatenate([own[creator], own[40:]])
    evening = 1.0 * (table["posted_hour"] >= 18)
    return table, of_creator + 0.5 * np.log1p(table["followers"]) + evening + inside, inside


def test_what_columns_explain_is_taken_out_and_what_they_do_not_is_kept() -> None:
    table, label, inside = creators_and_reach()
    columns = ("creator_id", "followers", "posted_hour")
    fitted = fit_residualizer(table, columns, label, np.ones(460), seed=0)
    left = label - fitted.explained(table)
    assert np.corrcoef(left[:400], inside[:400])[0, 1] > 0.8 > 0.4 > np.corrcoef(label[:400], inside[:400])[0, 1]
    assert fitted.explained_share > 0.7
    assert fitted.explained(table).mean() == pytest.approx(0, abs=1e-6)  # the label stays in its unit
    assert left.mean() == pytest.approx(label.mean(), abs=1e-6)
    stored = json.loads(json.dumps(fitted.to_dict()))
    assert stored["effects"]["creator_id"]["c7"] == fitted.effects["creator_id"]["c7"]
    assert set(stored["lines"]) == {"followers"}


def test_a_creator_with_one_video_keeps_its_label() -> None:
    """An effect of his own would explain all of it."""
    table, label, _ = creators_and_reach()
    fitted = fit_residualizer(table, ("creator_id",), label, np.ones(460), seed=0)
    left = label - fitted.explained(table)
    assert not any(name.startswith("s") for name in fitted.effects["creator_id"])
    assert left[400:].std() > 0.9 * label[400:].std()
    stranger = pd.DataFrame({"creator_id": ["never seen", None]})
    assert fitted.explained(stranger).tolist() == [fitted.rest["creator_id"]] * 2


def test_a_residualizer_is_fitted_on_the_training_videos_alone() -> None:
    table, label, _ = creators_and_reach()
    table["label"] = label
    training = table[:300]
    config = TargetConfig(residualize=("creator_id,followers",))
    assert columns_to_residualize(config) == ("creator_id", "followers")
    adjustment = fit_adjustment(training, config, seed=0)
    other = table.assign(label=np.where(np.arange(460) < 300, table["label"], 99))
    assert adjustment.to_dict() == fit_adjustment(other[:300], config, seed=0).to_dict()
    assert set(adjustment.residualizer.effects["creator_id"]) == {f"c{i}" for i in range(30)}


def test_unknown_numbers_and_infinite_ones_are_taken_as_the_middle() -> None:
    table, label, _ = creators_and_reach()
    table["followers"] = table["followers"].astype(float)
    table.loc[3, "followers"], table.loc[5, "followers"] = np.nan, np.inf
    fitted = fit_residualizer(table, ("followers",), label, np.ones(460), seed=0)
    found = fitted.explained(table)
    assert np.isfinite(found).all()
    middle = table["followers"].drop(index=[3, 5]).median()
    assert found[3] == found[5] == pytest.approx(fitted.explained(pd.DataFrame({"followers": [middle]}))[0])


def test_training_labels_are_winsorized_and_judged_ones_are_not() -> None:
    table = pd.DataFrame({"label": np.arange(101.0), "weight": 1.0})
    adjustment = fit_adjustment(table, TargetConfig(winsorize=0.05), seed=0)
    assert (adjustment.low, adjustment.high) == (5, 95)
    assert adjustment.apply(table, training=True).tolist() == np.arange(101.0).clip(5, 95).tolist()
    assert adjustment.apply(table, training=False).tolist() == table["label"].tolist()


def split_table(creators: list[str | None], days: list[float] | None = None) -> pd.DataFrame:
    table = pd.DataFrame({"creator_id": creators, "video_uri": [f"/{i}" for i in range(len(creators))]})
    return table if days is None else table.assign(posted_at=posted(days))


def test_no_creator_is_on_both_sides_of_the_split() -> None:
    table = split_table([f"c{i % 8}" for i in range(40)])
    for seed in range(5):
        side = sides(table, "v.csv", SplitConfig(seed=seed, validation_fraction=0.2))
        assert (table.assign(side=side).groupby("creator_id")["side"].nunique() == 1).all()
        assert 8 <= (side == HELD_OUT).sum() <= 15
        assert (side == VALIDATION).sum() in (5, 10)
        assert overlaps(table, side) == {"creators": 0, "files": 0}


def test_a_creator_with_most_of_the_videos_is_not_held_out() -> None:
    table = split_table(["star"] * 90 + [f"c{i}" for i in range(10)])
    for seed in range(10):
        held_out = sides(table, "v.csv", SplitConfig(seed=seed)) == HELD_OUT
        assert held_out.sum() == 10
        assert not held_out[:90].any()
    two = sides(split_table(["a"] * 12 + ["b"] * 8), "v.csv", SplitConfig())
    assert two.tolist() == [TRAINING] * 12 + [HELD_OUT] * 8


def test_split_by_time_holds_out_the_newest() -> None:
    order = np.random.default_rng(0).permutation(40)
    table = split_table([f"c{i % 8}" for i in range(40)], order.tolist())
    side = sides(table, "v.csv", SplitConfig(split="time"))
    assert set(order[side == HELD_OUT]) == set(range(30, 40))
    assert overlaps(table, side)["creators"] > 0
    assert overlaps(table, side)[OLDER] == 0
    undated = table.assign(posted_at=[*table["posted_at"][:39], None])
    assert sides(undated, "v.csv", SplitConfig(split="time"))[39] == LEFT_OUT


def test_split_by_creator_and_time_shares_neither() -> None:
    random = np.random.default_rng(0)
    table = split_table([f"c{i % 20}" for i in range(200)], random.permutation(200).tolist())
    side = sides(table, "v.csv", SplitConfig(split="creator+time", held_out_fraction=0.4))
    assert min((side == name).sum() for name in (TRAINING, HELD_OUT, LEFT_OUT)) > 20
    shared = overlaps(table, side)
    assert shared["creators"] == 0
    assert shared[OLDER] == 0


def test_random_split_shares_creators_and_says_so() -> None:
    table = split_table([f"c{i % 8}" for i in range(40)])
    side = sides(table, "v.csv", SplitConfig(split="random"))
    assert (side == HELD_OUT).sum() == 10
    assert overlaps(table, side)["creators"] > 0


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (SplitConfig(held_out_fraction=0), "--held-out-fraction is 0"),
        (SplitConfig(validation_fraction=1), "--validation-fraction is 1"),
        (SplitConfig(split="time"), "needs posted_at"),
        (SplitConfig(split="creator+time"), "needs posted_at"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(split: SplitConfig, message: str) -> None:
    with pytest.raises(Refused, match=message):
        sides(split_table([f"c{i % 8}" for i in range(40)], [0] * 40), "v.csv", split)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder, which is not here")
def test_a_scraped_table_of_ten_thousand_rows_is_labelled_weighed_and_judged() -> None:
    renames = {"vid_nshare": "shares", "vid_nlike": "likes", "vid_nview": "views", "vid_ncomment": "comments"}
    renames |= {"user_nfollower": "followers"}
    raw = pd.read_csv(SHARED / "vn_raw_no_usernames.csv", dtype=str).rename(columns=renames | {"vid_id": "video_id"})
    table = pa.Table.from_pandas(raw).replace_schema_metadata()
    for name in renames.values():
        counts, bad = parse_counts(table[name])
        assert not pc.any(bad).as_py()
        table = table.set_column(table.column_names.index(name), name, counts)
    table = table.append_column("creator_id", pa.nulls(table.num_rows, pa.string()))
    chosen = labelled(table, "vn.csv", TargetConfig("shares_per_view"))
    assert chosen.left_out == {"without shares and views": 3}
    odd = chosen.table[chosen.table["suspicious"] != ""]
    assert len(odd) == 28  # the three others have no views
    assert (odd["weight"] == 0.1).all()
    side = sides(chosen.table, "vn.csv", SplitConfig(split="random"))
    training, held_out = chosen.table[side == TRAINING], chosen.table[side == HELD_OUT]
    found = baselines(training, held_out, seed=0, unknown_at_posting=["vid_nsave"])
    assert 0.2 < srcc(held_out["label"].to_numpy(), found["followers"]) < 0.4
