"""What examined videos say together."""

import numpy as np
import pytest

from scoring.evidence import in_words, interval, summed_up, verdicts


def examined(videos: int = 20, seed: int = 0) -> list[dict[str, float]]:
    """Figures as of an Examiner: E's order is better by 0.5 in deletion and no better in insertion."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(videos):
        figures = {f"{what}/blur/{order}/{level}": 1.0 + random.normal(0, 0.05)
                   for what in ("deletion", "insertion") for order in ("E", "random") for level in (1, 2)}  # fmt: skip
        for level in (1, 2):
            figures[f"deletion/blur/E/{level}"] += 0.5
        figures |= {"randomised/fc": 0.8, "randomised/stem": 0.5, "shuffled": 0.3, "shuffled_inside": 0.2}
        figures |= {"randomised_inside/fc": 0.7, "randomised_inside/stem": random.normal(0, 0.05)}
        figures |= {"stability/mirrored": 0.9, "model/0": 0.7, "model_inside/0": 0.6, "pe/own": i / 100, "pe/0": i / 50}
        found.append(figures)
    return found


def test_figures_are_means_with_their_intervals():
    evidence = summed_up(examined(), ["other.pt"])
    assert evidence["videos"] == 20
    assert [len(side) for side in evidence["curves"]["deletion/blur/E"].values()] == [2, 2, 2]
    deletion, insertion = evidence["gains"]
    assert (deletion["what"], deletion["infill"], deletion["over"]) == ("deletion", "blur", "random")
    assert deletion["low"] < deletion["mean"] < deletion["high"]
    assert deletion["mean"] == pytest.approx(0.5, abs=0.05)
    assert insertion["low"] < 0 < insertion["high"]
    assert list(evidence["randomised"]) == ["fc", "stem"]
    assert evidence["shuffled"]["mean"] == pytest.approx(0.3)
    assert evidence["shuffled_inside"]["mean"] == pytest.approx(0.2)
    (other,) = evidence["models"]
    assert other["uri"] == "other.pt"
    assert (other["maps"]["mean"], other["maps_inside"]["mean"]) == pytest.approx((0.7, 0.6))
    assert other["pe_ranking"]["mean"] == pytest.approx(1)


def test_verdicts_pass_where_the_interval_says_so():
    by_claim = {verdict.claim: verdict for verdict in verdicts(summed_up(examined()))}
    assert len(by_claim) == 3
    passed = [claim for claim, verdict in by_claim.items() if verdict.outcome == "passed"]
    assert any("taking out" in claim for claim in passed)
    assert any("weights drawn anew" in claim for claim in passed)
    assert not any("putting back" in claim for claim in passed)
    alike = [figures | {"randomised_inside/stem": 0.5} for figures in examined()]
    assert verdicts(summed_up(alike))[-1].outcome == "failed"
    worse = [figures | {"deletion/blur/E/1": -3.0} for figures in examined()]
    assert verdicts(summed_up(worse))[0].outcome == "failed"


def test_an_interval_across_the_limit_decides_nothing_whatever_its_mean():
    near = [figures | {"randomised_inside/stem": 0.4 * (i % 2)} for i, figures in enumerate(examined(8))]
    verdict = verdicts(summed_up(near))[-1]
    assert verdict.outcome == "undecided"
    assert "0.20" in verdict.figure
    assert "whole interval" in verdict.figure


def test_videos_that_show_nothing_are_no_evidence():
    nothing = {"deletion/blur/E/1": 2e-7, "deletion/blur/random/1": 1e-7, "insertion/blur/E/1": 0.0,
               "insertion/blur/random/1": 1e-7, "randomised/stem": np.nan, "randomised_inside/stem": np.nan,
               "stability/mirrored": np.nan}  # fmt: skip
    evidence = summed_up([nothing] * 8)
    assert verdicts(evidence) == []
    assert in_words(evidence["stability"]["mirrored"]) == "unknown"
    mixed, seen = summed_up([nothing, *examined()]), summed_up(examined())
    assert mixed["gains"] == seen["gains"]
    assert mixed["randomised_inside"]["stem"] == seen["randomised_inside"]["stem"]


def test_two_videos_give_no_interval_and_pass_nothing_that_needs_one():
    evidence = summed_up(examined(2))
    assert evidence["gains"][0]["low"] is None
    assert {verdict.outcome for verdict in verdicts(evidence)} == {"undecided"}
    assert "to" not in in_words(evidence["gains"][0])


def test_models_without_products_have_no_ranking():
    found = [{name: value for name, value in figures.items() if not name.startswith("pe/")} for figures in examined()]
    assert summed_up(found, ["other.pt"])["models"][0]["pe_ranking"] is None
    same = [figures | {"pe/0": 0.1} for figures in examined()]
    assert summed_up(same, ["other.pt"])["models"][0]["pe_ranking"] is None


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        found = interval(random.normal(3, 1, 40))
        hits += found["low"] < 3 < found["high"]
    assert 85 <= hits <= 99
    assert interval([np.nan, 1.0]) == {"mean": 1.0, "low": None, "high": None}
    assert interval([])["mean"] is None
