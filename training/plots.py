"""The pictures of a training run that MLflow shows."""

from matplotlib.figure import Figure

from training.evaluation import Evaluation


def learning_curves(epochs: list[dict[str, float]]) -> Figure:
    """Losses and held-out SRCC over the epochs."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, ranks = figure.subplots(1, 2)
    number = [epoch["epoch"] for epoch in epochs]
    for name in ("train/loss", "val/loss"):
        losses.plot(number, [epoch[name] for epoch in epochs], marker="o", label=name)
    losses.set(xlabel="epoch", ylabel="Huber loss, standardised log engagement")
    losses.legend()
    ranks.plot(number, [epoch["val/srcc"] for epoch in epochs], marker="o", color="tab:green")
    ranks.set(xlabel="epoch", ylabel="SRCC on held-out creators", ylim=(-1, 1))
    ranks.axhline(0, color="grey", linewidth=0.8)
    return figure


def calibration(evaluation: Evaluation, target: str) -> Figure:
    """Predicted against true engagement of the held-out videos."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(evaluation.prediction, evaluation.held_out.label, s=18, alpha=0.7)
    low = min(evaluation.prediction.min(), evaluation.held_out.label.min())
    high = max(evaluation.prediction.max(), evaluation.held_out.label.max())
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8)
    srcc = evaluation.figures["srcc"]
    axes.set(
        xlabel=f"predicted log1p({target})",
        ylabel=f"true log1p({target})",
        title=f"held-out creators, SRCC {srcc:.2f}",
    )
    return figure
