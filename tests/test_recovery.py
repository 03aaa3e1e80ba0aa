"""The demo's figures, on a catalogue of three videos worked out by hand."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from analysis.recovery import recovery
from catalog.schemas import SCORES


def test_recovery_counts_what_can_be_seen_and_what_is_absent(tmp_path: Path) -> None:
    truth = pd.DataFrame(
        {
            "video_id": ["a", "b", "c"],
            "pe_true": [0.1, 0.2, 0.3],
            "product_visible": [[True, True, False], [True, True], [False, True]],
            "occluded": [[False, True, False], [False, False], [False, False]],
            "product_share": [[0.10, 0.10, 0.0], [0.06, 0.04], [0.0, 0.05]],
        }
    )
    truth.to_parquet(tmp_path / "truth.parquet")
    common = dict.fromkeys(SCORES.names)
    rows = [
        {"video_id": "a", "status": "ok", "pe_score": 0.3, "product_inliers": [9, 0, 0], "predicted_engagement": 1.0},
        {"video_id": "b", "status": "ok", "pe_score": 0.2, "product_inliers": [0, 9], "predicted_engagement": 2.0},
        {"video_id": "c", "status": "ok", "pe_score": 0.1, "product_inliers": [8, 8], "predicted_engagement": 3.0},
    ]
    scores = pa.Table.from_pylist([common | row for row in rows])
    videos = pa.table({"video_id": ["a", "b", "c"], "shares": [5, 6, 7]})
    found = recovery(tmp_path / "truth.parquet", videos, scores, {"a", "b", "c"}, "shares")
    assert found.product_seconds == 3  # a0, b0, c1: not a1 (occluded), not b1 (small)
    assert found.product_recall == pytest.approx(2 / 3)
    assert (found.false_seconds, found.absent_seconds) == (1, 2)
    assert found.pe_spearman == pytest.approx(-1)
    assert found.engagement_srcc == pytest.approx(1)
