"""The small pictures inside tables: intervals on one axis. Decoration, as the numbers stand beside them in text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup

from expunge.audits.base import Estimate


def whiskers(estimates: Mapping[str, Estimate], colours: Mapping[str, str]) -> Markup:
    """Draw each model's value and interval, one line per model, on a common axis.

    Args:
        estimates: model name -> its number.
        colours: model name -> CSS colour.

    Returns:
        An ``<svg>`` element; empty if there is nothing to draw.
    """
    ends = [x for e in estimates.values() for x in (e.value, e.low, e.high) if x is not None and math.isfinite(x)]
    if not ends:
        return Markup("")
    low, high = min(ends), max(ends)

    def place(x: float) -> float:
        # halves, so that the span of the largest numbers does not overflow
        return 6 + 148 * ((min(max(x, low), high) / 2 - low / 2) / (high / 2 - low / 2)) if high / 2 > low / 2 else 80

    parts = []
    for line, (name, e) in enumerate(estimates.items()):
        if e.value is None or math.isnan(e.value):
            continue
        y, colour = 8 + 13 * line, colours[name]
        if e.low is not None and e.high is not None and not math.isnan(e.low + e.high):
            parts.append(f'<path d="M{place(e.low):.1f} {y}H{place(e.high):.1f}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{place(e.value):.1f}" cy="{y}" r="4" fill="{colour}"/>')
    return _svg(3 + 13 * len(estimates), "".join(parts))


def against_margin(difference: float | None, low: float | None, high: float | None, margin: float | None) -> Markup:
    """Draw a difference and its interval over the band from minus margin to margin; empty if there is none."""
    given = [x for x in (difference, low, high) if x is not None]
    if difference is None or not margin or not all(map(math.isfinite, [*given, margin])):
        return Markup("")
    reach = 1.08 * max(abs(x) for x in (*given, margin))
    if not math.isfinite(reach):
        return Markup("")

    def place(x: float) -> float:
        return 80 + 74 * (x / reach)

    left, right = place(-abs(margin)), place(abs(margin))
    parts = [
        f'<rect x="{left:.1f}" y="3" width="{right - left:.1f}" height="20" rx="2" fill="var(--band)"/>',
        '<path d="M80 1V25" stroke="var(--muted)" stroke-width="1" stroke-dasharray="2 2"/>',
    ]
    if low is not None and high is not None:
        parts.append(f'<path d="M{place(low):.1f} 13H{place(high):.1f}" stroke="var(--ink)" stroke-width="2"/>')
    parts.append(f'<circle cx="{place(difference):.1f}" cy="13" r="4" fill="var(--ink)"/>')
    return _svg(26, "".join(parts))


def _svg(height: int, content: str) -> Markup:
    return Markup(f'<svg class="whiskers" viewBox="0 0 160 {height}" aria-hidden="true">{content}</svg>')
