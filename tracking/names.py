"""What models and experiments are called in MLflow, and where its files go without a server."""

from pathlib import Path

MODEL_NAME = "pe-engagement"
CHAMPION, CHALLENGER = "champion", "challenger"
BEST_BASELINE = "best_baseline"
"""Tag of a version: which of the models that need no video did best on its held-out videos."""
BASELINE_GAIN, BASELINE_GAIN_LOW = "srcc_over_baseline", "srcc_over_baseline_low"
"""Tags of a version: how much higher its SRCC is than that one's, and the lower end of the 95% interval."""
COMPARED_WITH, CHAMPION_GAIN = "compared_with_version", "srcc_over_champion"
"""Tags of a version: the champion when it was trained, and how much higher its SRCC is on the same videos."""
SHUFFLED = "shuffled"
"""Of a training run: the folder with the checkpoint of the same network trained on shuffled labels."""
TRAINING_RUNS, SCORING_RUNS, LIFT_RUNS = "pe-training", "pe-scoring", "pe-lift"
FAITHFULNESS_RUNS, COMPARE_RUNS = "pe-faithfulness", "pe-compare"
PROJECT = Path(__file__).resolve().parent.parent
LOCAL_STORE = PROJECT / "mlruns"
