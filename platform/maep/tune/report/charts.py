"""The charts of a search. Optuna's own lack intervals, count in trials and not images, and leave out stopped trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from maep.evaluate.report.drawing import COLOURS, INK, SOFT, canvas, distances, legend, thousands
from maep.tune.config import BudgetConfig
from maep.tune.metrics.estimates import estimate, metric
from maep.tune.record import RungResult, TrialRecord
from maep.tune.report.history import HistoryEntry, spent, unspent
from maep.tune.report.importance import Importance
from maep.tune.report.maps import common_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS_LABELS = {"mask_ratio": "mask ratio in training", "patch_size": "patch size, pixels"}
"""Axis labels of settings; any other setting is labelled by its key."""
UNITS = {"samples_seen": "images seen", "flops": "floating-point operations", "core_seconds": "core-seconds"}
"""The unit of each kind of budget."""
_STATUSES = {
    "done": ("trained to the end", "o", COLOURS[0]),
    "stopped": ("stopped early", "v", COLOURS[1]),
    "failed": ("failed", "x", SOFT),
}


def axis_label(key: str) -> str:
    """The label of a setting on an axis."""
    return AXIS_LABELS.get(common_name(key), key)


def front(trials: Sequence[TrialRecord], on_front: Sequence[TrialRecord], x: str, y: str) -> Figure:
    """Finished trials by two objectives; those on the Pareto front are joined, and numbered where there are few."""
    names = {trial.trial_id for trial in on_front}
    kept = sorted(on_front, key=lambda trial: (_scaled(trial, x), _scaled(trial, y)))
    beaten = [trial for trial in trials if trial.trial_id not in names]
    corner = [-1 if metric(name).lower_is_better else 1 for name in (x, y)]  # better in both: no trial is there
    with canvas(6.4, 4.2) as (figure, axes):
        for group, marker, colour, label in ((beaten, "o", SOFT, "dominated"), (kept, "D", COLOURS[1], "Pareto front")):
            if group:
                (across, *wide), (up, *high) = _estimates(group, x), _estimates(group, y)
                face = "none" if group is beaten else colour
                axes.errorbar(
                    across, up, distances(up, *high), distances(across, *wide), marker, color=colour, label=label,
                    ecolor=(colour, 0.35), elinewidth=1, markersize=5, markerfacecolor=face,
                )  # fmt: skip
        step = "steps-post" if corner[0] < 0 else "steps-pre"
        axes.plot(*([_scaled(t, name) for t in kept] for name in (x, y)), color=COLOURS[1], alpha=0.6, drawstyle=step)
        for trial in kept if len(kept) <= 12 else []:
            axes.annotate(
                f"{trial.number}", (_scaled(trial, x), _scaled(trial, y)), (5 * corner[0], 5 * corner[1]),
                textcoords="offset points", fontsize=9,
                ha="right" if corner[0] < 0 else "left", va="top" if corner[1] < 0 else "bottom",
            )  # fmt: skip
        labels = [f"{m.label} ({'lower' if m.lower_is_better else 'higher'} is better)" for m in map(metric, (x, y))]
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(alpha=0.2)
        legend(axes, 2)
    return figure


def importances(shown: Sequence[Importance]) -> Figure:
    """A group of bars for each setting, one bar for each objective."""
    settings = sorted({k for each in shown for k in each.shares}, key=lambda k: -max(e.shares.get(k, 0) for e in shown))
    height = 0.8 / len(shown)
    with canvas(6.4, 1.2 + 0.28 * len(settings) * (1 + len(shown))) as (figure, axes):
        for place, each in enumerate(shown):
            at = [row + (place - (len(shown) - 1) / 2) * height for row in range(len(settings))]
            shares = [100 * each.shares.get(key, 0.0) for key in settings]
            label = f"{metric(each.objective).words} (out-of-bag R² {each.explained:.2f}, {each.num_trials} trials)"
            bars = axes.barh(at, shares, 0.9 * height, color=COLOURS[place], label=label)
            axes.bar_label(bars, [f"{share:.0f}" for share in shares], padding=3, fontsize=9)
        axes.set_yticks(range(len(settings)), settings)
        axes.set(ylim=(len(settings) - 0.5, -0.5), xlim=(0, 105), xlabel="share of the variance among trials, %")
        axes.tick_params(axis="y", length=0)
        legend(axes, 1)
    return figure


def history(entries: Sequence[HistoryEntry], objective: str) -> Figure:
    """Every measured trial at its end, and the best finished one so far, by images seen by all trials."""
    scale = metric(objective).scale
    with canvas(6.4, 3.8) as (figure, axes):
        for status, (label, marker, colour) in _STATUSES.items():
            there = [entry for entry in entries if entry.trial.status == status]
            if there:
                value, low, high = _estimates([entry.trial for entry in there], objective)
                axes.errorbar(
                    [entry.samples_seen for entry in there], value, distances(value, low, high), fmt=marker,
                    color=colour, ecolor=(colour, 0.35), markersize=5, label=label,
                )  # fmt: skip
        best = [(entry.samples_seen, scale * entry.best) for entry in entries if entry.best is not None]
        if best:
            axes.step(*zip(*best, strict=True), where="post", color=INK, label="best finished so far")
        _over_images(axes, "images seen by all trials", objective)
        axes.set_xlim(left=0)
    return figure


def learning_curves(
    results: Mapping[str, Sequence[RungResult]], trials: Sequence[TrialRecord], objective: str
) -> Figure:
    """Each trial at every rung where it was measured."""
    scale = metric(objective).scale
    with canvas(6.4, 3.8) as (figure, axes):
        for trial in trials:
            label, marker, colour = _STATUSES[trial.status]
            mine = [result for result in results.get(trial.trial_id, ()) if objective in result.objectives]
            x, y = [result.samples_seen for result in mine], [scale * result.objectives[objective] for result in mine]
            _, labels = axes.get_legend_handles_labels()
            named = label if mine and label not in labels else None
            axes.plot(x, y, color=colour, alpha=0.6, linewidth=1, marker=marker, markersize=4, label=named)
        _over_images(axes, "images seen by the trial", objective)
        rungs = sorted({result.samples_seen for each in results.values() for result in each})
        if len(rungs) <= 6:
            axes.set_xticks(rungs)
    return figure


def budgets(trials: Sequence[TrialRecord], budget: BudgetConfig) -> Figure:
    """A bar per trial: what it spent, and dotted what early stopping saved."""
    with canvas(6.4, 1.3 + 0.2 * len(trials)) as (figure, axes):
        for status, (label, _, colour) in _STATUSES.items():
            rows = [row for row, trial in enumerate(trials) if trial.status == status]
            used = [spent(trials[row], budget.kind) for row in rows]
            saved = [unspent(trials[row], budget) for row in rows]
            hatch = "///" if status == "failed" else None
            if rows:
                axes.barh(rows, used, 0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label)
                axes.barh(rows, saved, 0.7, used, facecolor="none", edgecolor=colour, linestyle=":")
        axes.set_yticks(range(len(trials)), [f"{trial.number}" for trial in trials], fontsize=8)
        axes.set(ylim=(len(trials) - 0.4, -0.6), xlabel=f"{UNITS[budget.kind]} (dotted: saved)", ylabel="trial")
        axes.tick_params(axis="y", length=0)
        thousands(axes)
        legend(axes, 3)
    return figure


def _over_images(axes: Axes, x_label: str, objective: str) -> None:
    axes.set(xlabel=x_label, ylabel=metric(objective).label)
    axes.grid(axis="y", alpha=0.25)
    thousands(axes)
    legend(axes, 2)


def _scaled(trial: TrialRecord, objective: str) -> float:
    return metric(objective).scale * trial.objectives[objective]


def _estimates(trials: Sequence[TrialRecord], objective: str) -> tuple[list[float], list[float], list[float]]:
    """Values, lower and upper bounds in the unit of the axis."""
    scale, found = metric(objective).scale, [estimate(trial, objective) for trial in trials]
    return [scale * f.value for f in found], [scale * f.low for f in found], [scale * f.high for f in found]
