"""How plots look and how a figure becomes an SVG text: equal figures give equal bytes, and nothing outside is named."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2329", "#5d6672", "#d9dee5", "#fefefe"
"""Colours of text, axes, grid and ground. Each is used for nothing else, so that a page can swap them for its own."""

KNOWN_COLOURS = {"original": "#d55e00", "unlearned": "#0072b2", "oracle": "#009e73"}
OTHER_COLOURS = ("#cc79a7", "#b8860b", "#6a3d9a", "#8c564b", "#4d4d4d")
"""After Okabe and Ito (2008): distinguishable with any common colour blindness."""

DASHES = ("-", "--", ":", "-.")

RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expunge",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "path.simplify": True,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Drawing:
    """A drawn plot.

    Attributes:
        svg: the ``<svg>`` element, with a text alternative; no prolog, no links to anything outside.
        note: what the reader must know of values that could not be shown, or "".
    """

    svg: str
    note: str = ""


@dataclass(frozen=True)
class Style:
    """How one model is drawn: colour as #rrggbb and a matplotlib line style."""

    colour: str
    dash: str = "-"


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Give every model name its colour and line style, the same in all plots of a report.

    Known names keep their colour everywhere; further oracles share the oracle's colour and differ in dashes.

    Args:
        names: all model names of the report, in the report's order.
    """
    chosen: dict[str, Style] = {}
    spare = 0
    for name in names:
        family, _, number = name.partition("-")
        if name in KNOWN_COLOURS:
            chosen[name] = Style(KNOWN_COLOURS[name], "--" if name == "oracle" else "-")
        elif family == "oracle" and number.isdigit():
            chosen[name] = Style(KNOWN_COLOURS["oracle"], DASHES[(int(number)) % len(DASHES)])
        else:
            chosen[name] = Style(OTHER_COLOURS[spare % len(OTHER_COLOURS)], DASHES[spare // len(OTHER_COLOURS) % 4])
            spare += 1
    return chosen


def short(text: str, limit: int = 56) -> str:
    """Cut a label that would leave no room for the plot."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def write_svg(figure: Figure, description: str, prefix: str) -> str:
    """Write a figure as an inline ``<svg>`` element that scales, inherits the page's font and names nothing outside."""
    stream = io.StringIO()
    FigureCanvasSVG(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's own fonts draw the text
        figure.savefig(stream, format="svg", transparent=True,
                       metadata={"Date": None, "Creator": None, "Format": None, "Type": None})  # fmt: skip
    svg = stream.getvalue()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*|<!--.*?-->\s*", "", svg[svg.index("<svg") :].strip(), flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    names = {
        name: f"{re.sub(r'[^A-Za-z0-9_-]', '-', prefix)}-{i}" for i, name in enumerate(sorted(a or b for a, b in used))
    }

    def tidy(tag: re.Match[str]) -> str:
        text = re.sub(r"\s+", " ", tag[0]).replace("xlink:href", "href").replace("'DejaVu Sans', sans-serif", "inherit")
        text = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", text)
        text = re.sub(r'(href="|url\()#([^")]+)', lambda m: f"{m[1]}#{names[m[2]]}", text)
        return re.sub(r"(\d\.\d{2})\d+", r"\1", text)  # a hundredth of a point is not visible

    svg = re.sub(r"\n\s*", "\n", re.sub(r"<[^>]+>", tidy, svg))
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    head = f'<svg {view[0]} xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(description)}"'
    return f'{head} style="stroke-linejoin: round; font-family: system-ui, sans-serif"{svg[svg.index(">") :]}'
