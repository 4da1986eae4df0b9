"""Plots as small SVG texts: colour is never the only thing that tells two models apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from expunge.audits.base import Plot
from expunge.reports.report import Training
from expunge.reports.svg import (
    INK,
    KNOWN_COLOURS,
    MUTED,
    OTHER_COLOURS,
    PAPER,
    RC,
    Drawing,
    Style,
    short,
    styles,
    write_svg,
)

MOST_POINTS = 160


def draw(plot: Plot, models: Sequence[str] = (), prefix: str = "plot") -> Drawing:
    """Draw a plot of a finding.

    Args:
        plot: the plot as data.
        models: all model names of the report, for consistent colours; the plot's own series where empty.
        prefix: put before every id in the SVG, so that several fit on one page.
    """
    order = [name for name in models if name in plot.series]
    order += [name for name in plot.series if name not in order]
    look = styles([*models, *(name for name in order if name not in models)])
    drawers = {"distribution": _distribution, "curve": _curve, "roc": _roc}
    return drawers[plot.kind](plot, order, look, prefix)


def draw_loss(training: Training, prefix: str = "loss") -> Drawing:
    """Draw the loss of every term over the steps, one panel per term because their scales differ."""
    terms = {name: _points(points) for name, points in training.loss.items()}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.2, 0.7 + 1.15 * max(1, len(terms))), layout="constrained")
        panels = figure.subplots(max(1, len(terms)), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (name, points), colour in zip(panels, terms.items(), OTHER_COLOURS * len(terms), strict=False):
            thin = _thin(points)
            panel.plot(thin[:, 0], thin[:, 1], color=colour, linewidth=1.6)
            panel.set_title(short(name), loc="left", fontsize=9.5, color=INK)
            panel.yaxis.set_major_locator(MaxNLocator(4))
            panel.grid(True, axis="y")
        panels[-1].set_xlabel("optimiser step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ends = [f"{name} from {p[0, 1]:.3g} to {p[-1, 1]:.3g}" for name, p in terms.items() if len(p)]
        note = _left_out(sum(len(points) for points in training.loss.values()) - sum(len(p) for p in terms.values()))
        if any(len(points) > MOST_POINTS for points in terms.values()):
            note = f"{note} Long runs are drawn as means of neighbouring steps.".strip()
        return Drawing(write_svg(figure, "Loss per term over the steps: " + "; ".join(ends), prefix), note)


def draw_path(training: Training, prefix: str = "path") -> Drawing:
    """Draw the forget statistic against the retain statistic along training, with the kept checkpoint marked."""
    shown = [p for p in training.path if _finite(p.forget) and _finite(p.retain)]
    note = _left_out(len(training.path) - len(shown))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        xs, ys = [float(p.retain or 0) for p in shown], [float(p.forget or 0) for p in shown]
        colour = KNOWN_COLOURS["unlearned"]
        axes.plot(xs, ys, color=colour, linewidth=1.3, alpha=0.6, marker="o", markersize=3.5)
        if training.forget_target is not None and _finite(training.forget_target):
            axes.axhline(training.forget_target, color=KNOWN_COLOURS["oracle"], linestyle="--", linewidth=1.3)
            axes.annotate("level of a model that never knew", (0.99, training.forget_target), ha="right", va="top",
                          xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points",
                          fontsize=9, color=KNOWN_COLOURS["oracle"])  # fmt: skip
        if shown and not shown[0].kept:
            axes.plot(xs[:1], ys[:1], marker="o", markersize=8, markerfacecolor=PAPER, color=colour, linestyle="none")
            axes.annotate(
                f"step {shown[0].step}", (xs[0], ys[0]), xytext=(9, -3), textcoords="offset points", fontsize=9
            )
        for point, x, y in ((p, x, y) for p, x, y in zip(shown, xs, ys, strict=True) if p.kept):
            axes.plot([x], [y], marker="*", markersize=15, color=KNOWN_COLOURS["original"],
                      markeredgecolor=PAPER, linestyle="none")  # fmt: skip
            axes.annotate(f"kept: step {point.step}", (x, y), xytext=(0, 10), textcoords="offset points", ha="center",
                          fontsize=9.5, fontweight="bold")  # fmt: skip
        axes.margins(0.12, 0.16)
        axes.set_xlabel(short(training.retain_statistic))
        axes.set_ylabel(short(training.forget_statistic))
        axes.grid(True)
        where = "".join(f"; kept at step {p.step}" for p in shown if p.kept)
        alt = f"{training.forget_statistic} against {training.retain_statistic} at {len(shown)} checkpoints{where}."
        return Drawing(write_svg(figure, alt, prefix), note)


def _distribution(plot: Plot, order: list[str], look: Mapping[str, Style], prefix: str) -> Drawing:
    given = {name: np.asarray(list(plot.series[name]), dtype=float).ravel() for name in order}
    values = {name: v[np.isfinite(v)] for name, v in given.items()}
    pooled = np.concatenate([*values.values(), np.empty(0)])
    note = _left_out(sum(v.size for v in given.values()) - pooled.size)
    low, high = (
        (np.percentile(pooled, [0.5, 99.5]) if pooled.size > 100 else (pooled.min(), pooled.max()))
        if pooled.size
        else (0, 1)
    )
    logarithmic = bool(pooled.size) and pooled.min() > 0 and high > 200 * low
    low, high = (low, high) if high > low else (low - abs(low) / 10 - 0.5, high + abs(high) / 10 + 0.5)
    beyond = int(((pooled < low) | (pooled > high)).sum())
    if beyond:
        note = f"{note} Beyond the axis and counted in its outermost bars: {_values(beyond)}.".strip()
    edges: NDArray[np.float64] = np.geomspace(low, high, 31) if logarithmic else np.linspace(low, high, 31)
    shares = {n: np.histogram(np.clip(v, low, high), bins=edges)[0] / max(1, v.size) for n, v in values.items()}
    top = max([float(share.max()) for share in shares.values()] or [1.0]) or 1.0
    medians = {name: float(np.median(v)) for name, v in values.items() if v.size}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.2, 0.75 + 0.8 * max(1, len(order))), layout="constrained")
        panels = figure.subplots(max(1, len(order)), 1, sharex=True, squeeze=False)[:, 0]
        for panel, name in zip(panels, order, strict=False):
            colour = look[name].colour
            panel.stairs(shares[name], edges, fill=True, color=colour, alpha=0.35, linewidth=0)
            panel.stairs(shares[name], edges, color=colour, linewidth=1.2)
            panel.set(ylim=(0, top * 1.42), yticks=[])
            panel.spines["left"].set_visible(False)
            panel.set_ylabel(short(name, 20), rotation=0, ha="right", va="center", color=INK, fontsize=10)
            if name in medians:
                panel.axvline(float(np.clip(medians[name], low, high)), color=INK, linewidth=1.2, ymax=0.72)
                panel.text(1, 1, f"median {medians[name]:.3g} (n = {values[name].size})", ha="right", va="top",
                           transform=panel.transAxes, fontsize=8.5, color=MUTED)  # fmt: skip
            else:
                panel.text(0.5, 0.4, "no data", ha="center", transform=panel.transAxes, fontsize=9, color=MUTED)
        panels[-1].set_xlabel(short(plot.x_label) + (" (log scale)" if logarithmic else ""))
        if logarithmic:
            panels[-1].set_xscale("log")
            panels[-1].xaxis.set_major_locator(LogLocator(numticks=6))
            panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            panels[-1].xaxis.set_minor_formatter(NullFormatter())
        described = [f"{name} {medians[name]:.3g}" if name in medians else f"{name} no data" for name in order]
        return Drawing(write_svg(figure, f"{plot.title}. Medians: {', '.join(described)}.", prefix), note)


def _curve(plot: Plot, order: list[str], look: Mapping[str, Style], prefix: str) -> Drawing:
    curves = {name: _points(plot.series[name]) for name in order}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for name, points in curves.items():
            thin = _thin(points)
            marker = "o" if len(thin) <= 25 else None
            axes.plot(thin[:, 0], thin[:, 1], color=look[name].colour, linestyle=look[name].dash, linewidth=1.8,
                      marker=marker, markersize=3.5, label=short(name, 28))  # fmt: skip
        axes.set_xlabel(short(plot.x_label))
        axes.set_ylabel(short(plot.y_label))
        axes.grid(True)
        if curves:
            axes.legend(handlelength=2.6)
        ends = [f"{n} from {p[0, 1]:.3g} to {p[-1, 1]:.3g}" if len(p) else f"{n} no data" for n, p in curves.items()]
        note = _left_out(sum(len(plot.series[name]) - len(curves[name]) for name in order))
        return Drawing(write_svg(figure, f"{plot.title}. {'; '.join(ends)}.", prefix), note)


def _roc(plot: Plot, order: list[str], look: Mapping[str, Style], prefix: str) -> Drawing:
    curves = {name: _points(plot.series[name]) for name in order}
    areas = {n: float(np.trapezoid(p[:, 1], p[:, 0])) for n, p in curves.items() if len(p) > 1}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":", label="chance")
        for name, points in curves.items():
            corners = _corners(points)
            axes.plot(corners[:, 0], corners[:, 1], color=look[name].colour, linestyle=look[name].dash, linewidth=1.8,
                      label=f"{short(name, 28)} ({f'{areas[name]:.3f}' if name in areas else 'no data'})")  # fmt: skip
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel(short(plot.x_label))
        axes.set_ylabel(short(plot.y_label))
        axes.grid(True)
        axes.legend(
            loc="lower right", title="area under the curve", title_fontsize=9, alignment="left", handlelength=2.6
        )
        note = _left_out(sum(len(plot.series[name]) - len(curves[name]) for name in order))
        described = [f"{n} {areas[n]:.3f}" if n in areas else f"{n} no data" for n in order]
        return Drawing(write_svg(figure, f"{plot.title}. Area under the curve: {', '.join(described)}.", prefix), note)


def _points(series: Sequence[Any]) -> NDArray[np.float64]:
    points = np.asarray([(float(x), float(y)) for x, y in series], dtype=float).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def _thin(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average neighbours until at most ``MOST_POINTS`` remain."""
    if len(points) <= MOST_POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, MOST_POINTS)])


def _corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drop the points that lie on the straight line between their neighbours: the curve stays what it is."""
    points = points[np.concatenate([[True], (np.diff(points, axis=0) != 0).any(axis=1)])[: len(points)]]
    if len(points) < 3:
        return points
    before, after = np.diff(points, axis=0)[:-1], np.diff(points, axis=0)[1:]
    bends = ~np.isclose(before[:, 0] * after[:, 1], before[:, 1] * after[:, 0], rtol=0, atol=1e-12)
    return points[np.concatenate([[True], bends, [True]])]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _left_out(count: int) -> str:
    return f"Left out, because missing or not finite: {_values(count)}." if count else ""


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"
