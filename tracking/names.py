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
ABOUT = {
    TRAINING_RUNS: (
        "Engagement models, one run a training. **To choose**: `eval/srcc` on videos whose creators training never "
        "saw, with its 95% interval `eval/srcc_low`, `eval/srcc_high`; `eval/srcc_over_baseline_low` above 0 says that "
        "the model beats what needs no video. Compare runs whose tags `target` and `data_digest` are the same."
    ),
    SCORING_RUNS: (
        "Scored catalogues, one run a scoring job; `report.html` among its artifacts shows the videos. Scores of two "
        "runs can be compared where the tags `catalogue` and `model_version` are the same."
    ),
    LIFT_RUNS: "Do the scores predict sales? A run's description begins with the verdict.",
    COMPARE_RUNS: "What moved from one scoring run to another.",
    FAITHFULNESS_RUNS: "Can the engagement maps be trusted? A run's description begins with the verdicts.",
}
"""What a stranger should know of an experiment, in Markdown."""
ABOUT_MODEL = (
    "Predicts engagement with a short video from its pixels; its slopes say which of them drive it. A version's "
    "description is its model card. The alias `champion` is what jobs.score takes, `challenger` is the latest."
)
PROJECT = Path(__file__).resolve().parent.parent
LOCAL_STORE = PROJECT / "mlruns"
