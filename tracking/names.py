"""What models and experiments are called in MLflow, and where its files go without a server."""

from pathlib import Path

MODEL_NAME = "pe-engagement"
CHAMPION, CHALLENGER = "champion", "challenger"
TRAINING, SCORING, LIFT = "pe-training", "pe-scoring", "pe-lift"
PROJECT = Path(__file__).resolve().parent.parent
LOCAL_STORE = PROJECT / "mlruns"
