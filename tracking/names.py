"""What models and experiments are called in MLflow, and where its files go without a server."""

from pathlib import Path

MODEL_NAME = "pe-engagement"
CHAMPION, CHALLENGER = "champion", "challenger"
BEST_BASELINE, BASELINE_GAIN = "best_baseline", "srcc_over_baseline"
"""Tags of a version: which of the models that need no video did best, and how much higher the version's SRCC is."""
COMPARED_WITH, CHAMPION_GAIN = "compared_with_version", "srcc_over_champion"
"""Tags of a version: the champion when it was trained, and how much higher its SRCC is on the same videos."""
TRAINING, SCORING, LIFT = "pe-training", "pe-scoring", "pe-lift"
PROJECT = Path(__file__).resolve().parent.parent
LOCAL_STORE = PROJECT / "mlruns"
