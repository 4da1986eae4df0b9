"""Forgetting against what is kept, one point per run: who is not beaten on both at once?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from expunge.reports.svg import INK, KNOWN_COLOURS, MUTED, OTHER_COLOURS, PAPER, RC, Drawing, short, write_svg

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "d")
COLOURS = (KNOWN_COLOURS["unlearned"], *OTHER_COLOURS)


@dataclass(frozen=True)
class Candidate:
    """One thing that is compared, such as a method with its settings.

    Attributes:
        name: what the legend calls it.
        forget, retain: its two statistics.
        runs: (forget, retain) of every run behind it.
    """

    name: str
    forget: float
    retain: float
    runs: Sequence[tuple[float, float]] = ()


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point beats.

    A point is beaten by one that is at least as large in both coordinates and larger in one.

    Args:
        points: (x, y), larger is better; points with a NaN are beaten by definition.
    """
    good = [k for k, point in enumerate(points) if not any(map(math.isnan, point))]
    return [k for k in good if not any(_beats(points[other], points[k]) for other in good)]


def _beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def draw_pareto(
    candidates: Sequence[Candidate],
    front: Sequence[str],
    forget_title: str,
    retain_title: str,
    level: float | None = None,
    marks: Sequence[Candidate] = (),
    prefix: str = "pareto",
) -> Drawing:
    """Draw every candidate with its runs, those that are not beaten filled, the others hollow.

    Args:
        candidates: what is compared.
        front: names of those that are not beaten.
        forget_title, retain_title: words on the axes.
        level: forget statistic of a model that never knew.
        marks: what stands beside them for orientation, such as the original.
        prefix: put before every id in the SVG.
    """
    shown = [c for c in candidates if math.isfinite(c.forget) and math.isfinite(c.retain)]
    left_out = len(candidates) - len(shown)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.6, max(3.8, 0.9 + 0.23 * (len(shown) + len(marks)))), layout="constrained")
        axes = figure.add_subplot()
        if level is not None:
            axes.axvline(level, color=KNOWN_COLOURS["oracle"], linestyle="--", linewidth=1.3, label="level")
        for number, one in enumerate(shown):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            runs = [run for run in one.runs if math.isfinite(run[0]) and math.isfinite(run[1])]
            if len(runs) > 1:
                axes.plot(*zip(*runs, strict=True), marker=marker, markersize=3.5, color=colour, alpha=0.45,
                          linestyle="none")  # fmt: skip
            best = one.name in front
            label = short(one.name, 40) + (" (not beaten)" if best else "")
            axes.plot([one.forget], [one.retain], marker=marker, markersize=9, color=colour, linestyle="none",
                      markerfacecolor=colour if best else PAPER, markeredgewidth=1.6, label=label)  # fmt: skip
        for one in marks:
            colour = KNOWN_COLOURS.get(one.name, MUTED)
            axes.plot([one.forget], [one.retain], marker="*", markersize=12, color=colour, linestyle="none",
                      markeredgecolor=PAPER, label=one.name)  # fmt: skip
        axes.margins(0.06, 0.08)
        axes.set_xlabel(short(forget_title))
        axes.set_ylabel(short(retain_title))
        axes.grid(True)
        figure.legend(loc="outside right upper", labelcolor=INK)
        said = "; ".join(f"{c.name} {c.forget:.3g}, {c.retain:.3g}" for c in shown)
        alt = f"{retain_title} against {forget_title}: {said}. Not beaten: {', '.join(front) or 'none'}."
        note = f"Left out, because not finite: {left_out}." if left_out else ""
        return Drawing(write_svg(figure, alt, prefix), note)
