"""The charts of a search, by Matplotlib: as PNG for whoever shows one, as SVG for the page.

Nothing global is touched: no pyplot, no style that outlives a call. Colours are told apart by colour-blind readers,
statuses by shape as well, and every accuracy stands with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maep.evaluate.report.drawing import COLOURS, INK, SOFT, canvas, thousands
from maep.tune.config import BudgetConfig
from maep.tune.metrics.estimates import estimate, measure
from maep.tune.record import Point, TrialRecord
from maep.tune.report.history import Step, spent, unspent
from maep.tune.report.importance import Importance
from maep.tune.report.maps import common_name

WORDS = {"mask_ratio": "mask ratio (share of patches hidden in training)", "patch_size": "patch size, pixels"}
"""How an axis is called; any other setting by its key."""
KINDS = {"samples_seen": "images seen", "flops": "floating-point operations", "core_seconds": "core-seconds"}
"""How what a budget counts is called."""
_STATUS: Mapping[str, tuple[str, str]] = {"done": ("o", COLOURS[0]), "stopped": ("v", COLOURS[1])}


def axis_label(key: str) -> str:
    """A setting as it is written along an axis."""
    return WORDS.get(common_name(key), key)


def pareto(trials: Sequence[TrialRecord], on_front: Sequence[TrialRecord], x: str, y: str) -> Figure:
    """Finished trials by two objectives; those that none beats are joined, and numbered where there is room."""
    with canvas(6.4, 4.2) as (figure, axes):
        names = {trial.trial_id for trial in on_front}
        for trials_there, colour, fill, label, order in (
            ([t for t in trials if t.trial_id not in names], SOFT, "none", "beaten by another trial", 2),
            (list(on_front), COLOURS[1], COLOURS[1], "on the front: no trial beats it", 4),
        ):
            if trials_there:
                _bars(axes, trials_there, x, y, colour)
                across, up = ([_scaled(t, name) for t in trials_there] for name in (x, y))
                axes.scatter(
                    across, up, s=30, facecolor=fill, edgecolor=colour, linewidth=1.2, label=label, zorder=order
                )
        ordered = sorted(on_front, key=lambda trial: (_scaled(trial, x), _scaled(trial, y)))
        corner = [-1 if measure(name).lower_is_better else 1 for name in (x, y)]  # better in both: nothing lies there
        axes.plot(
            *[[_scaled(trial, name) for trial in ordered] for name in (x, y)],
            color=COLOURS[1], linewidth=1, alpha=0.6, drawstyle="steps-post" if corner[0] < 0 else "steps-pre",
        )  # fmt: skip
        for trial in ordered if len(ordered) <= 12 else []:
            axes.annotate(
                f"{trial.number}", (_scaled(trial, x), _scaled(trial, y)), (5 * corner[0], 5 * corner[1]),
                textcoords="offset points", fontsize=9,
                ha="right" if corner[0] < 0 else "left", va="top" if corner[1] < 0 else "bottom",
            )  # fmt: skip
        _framed(axes, x, y)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def importances(every: Sequence[Importance]) -> Figure:
    """One group of bars for each setting, one bar for each objective of which something can be said."""
    shown = [each for each in every if each.shares]
    settings = sorted(
        {key for each in shown for key in each.shares}, key=lambda k: -max(e.shares.get(k, 0) for e in shown)
    )
    height = 0.8 / len(shown)
    with canvas(6.4, 1.2 + 0.28 * len(settings) * (1 + len(shown))) as (figure, axes):
        for place, each in enumerate(shown):
            at = [row + (place - (len(shown) - 1) / 2) * height for row in range(len(settings))]
            shares = [100 * each.shares.get(key, 0.0) for key in settings]
            label = f"{measure(each.objective).words} (out-of-bag R² {each.explained:.2f}, {each.num_trials} trials)"
            bars = axes.barh(at, shares, 0.9 * height, color=COLOURS[place], label=label)
            axes.bar_label(bars, [f"{share:.0f}" for share in shares], padding=3, fontsize=9)
        axes.set_yticks(range(len(settings)), settings)
        axes.set(ylim=(len(settings) - 0.5, -0.5), xlim=(0, 105), xlabel="share of the variance among trials, %")
        axes.tick_params(axis="y", length=0)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    return figure


def course(steps: Sequence[Step], objective: str) -> Figure:
    """Every measured trial when it ended, and the best finished one so far."""
    scale = measure(objective).scale
    with canvas(6.4, 3.8) as (figure, axes):
        for status, (marker, colour) in _STATUS.items():
            there = [step for step in steps if step.trial.status == status]
            if there:
                at = [step.samples_seen for step in there]
                found = [estimate(step.trial, objective) for step in there]
                axes.vlines(at, [scale * f.low for f in found], [scale * f.high for f in found], colour, alpha=0.35)
                label = "trial, trained to the end" if status == "done" else "trial, stopped early (at its last rung)"
                axes.scatter(at, [scale * f.value for f in found], s=26, marker=marker, color=colour, label=label)
        best = [step for step in steps if step.best is not None]
        if best:
            heights = [scale * step.best for step in best if step.best is not None]
            axes.step([s.samples_seen for s in best], heights, where="post", color=INK, label="best finished so far")
        axes.set_xlabel("images seen by all trials together")
        axes.set_ylabel(measure(objective).label)
        thousands(axes)
        axes.set_xlim(left=0)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def curves(points: Mapping[str, Sequence[Point]], trials: Sequence[TrialRecord], objective: str) -> Figure:
    """What each trial was measured at on its way: where those that were stopped stood among the others."""
    scale = measure(objective).scale
    with canvas(6.4, 3.8) as (figure, axes):
        labelled: set[str] = set()
        for trial in trials:
            marker, colour = _STATUS.get(trial.status, ("x", SOFT))
            mine = [point for point in points.get(trial.trial_id, ()) if objective in point.objectives]
            if mine:
                label = {"done": "trained to the end", "stopped": "stopped early"}.get(trial.status, "failed")
                line = [scale * point.objectives[objective] for point in mine]
                axes.plot(
                    [point.samples_seen for point in mine], line, color=colour, alpha=0.6, linewidth=1,
                    marker=marker, markersize=4, label=None if label in labelled else label,
                )  # fmt: skip
                labelled.add(label)
        axes.set_xlabel("images seen by the trial")
        axes.set_ylabel(measure(objective).label)
        thousands(axes)
        rungs = sorted({point.samples_seen for each in points.values() for point in each})
        if len(rungs) <= 6:
            axes.set_xticks(rungs)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
    return figure


def budget(trials: Sequence[TrialRecord], allowed: BudgetConfig) -> Figure:
    """A bar a trial: what it has spent, and dotted what stopping it early left."""
    with canvas(6.4, 1.3 + 0.2 * len(trials)) as (figure, axes):
        for row, trial in enumerate(trials):
            colour, used = _STATUS.get(trial.status, ("x", SOFT))[1], spent(trial, allowed.kind)
            left, hatch = unspent(trial, allowed), "///" if trial.status == "failed" else None
            axes.barh(row, used, 0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            axes.barh(row, left, 0.7, used, facecolor="none", edgecolor=colour, linestyle=":")
        ended = {trial.status for trial in trials}
        for status, words in (("done", "trained to the end"), ("stopped", "stopped early"), ("failed", "failed")):
            if status in ended:
                axes.barh(0, 0, color=_STATUS.get(status, ("x", SOFT))[1], label=words)
        axes.set_yticks(range(len(trials)), [f"{trial.number}" for trial in trials], fontsize=8)
        axes.set(ylim=(len(trials) - 0.4, -0.6), xlabel=f"{KINDS[allowed.kind]} (dotted: left unspent)", ylabel="trial")
        axes.tick_params(axis="y", length=0)
        thousands(axes)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
    return figure


def _scaled(trial: TrialRecord, objective: str) -> float:
    return measure(objective).scale * trial.objectives[objective]


def _bars(axes: Axes, trials: Sequence[TrialRecord], x: str, y: str, colour: str) -> None:
    """The 95 % intervals of both objectives, where they have one."""
    for trial in trials:
        across, up = (estimate(trial, name) for name in (x, y))
        a, b = measure(x).scale, measure(y).scale
        axes.hlines(b * up.value, a * across.low, a * across.high, colour, alpha=0.35, linewidth=1)
        axes.vlines(a * across.value, b * up.low, b * up.high, colour, alpha=0.35, linewidth=1)


def _framed(axes: Axes, x: str, y: str) -> None:
    for name, set_label in ((x, axes.set_xlabel), (y, axes.set_ylabel)):
        how = measure(name)
        set_label(f"{how.label} ({'lower' if how.lower_is_better else 'higher'} is better)")
    axes.grid(alpha=0.2)
