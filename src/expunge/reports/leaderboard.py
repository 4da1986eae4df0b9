"""Benchmark tables: methods in rows, metrics in columns, every number with its interval; as HTML, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from jinja2 import Environment
from scipy import special

from expunge.audits.base import Estimate
from expunge.reports.wording import NO_DATA, number

CellValue = Estimate | str | float | int | None
"""What a cell may hold; None is "no data"."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: the key of the row that it shows.
        title: heading.
        better: which numbers are better, for the mark of the best row; "none" marks nothing.
        digits: decimals.
    """

    key: str
    title: str
    better: Literal["high", "low", "none"] = "none"
    digits: int = 3


def over_seeds(values: Sequence[float | None], level: float = 0.95) -> Estimate:
    """Summarise one metric over seeds.

    Args:
        values: one value per seed [n]; None or NaN where a seed gave none.
        level: coverage of the interval.

    Returns:
        Mean with Student's t interval over seeds; no interval for one seed; "no data" for none.
    """
    given = [float(v) for v in values if v is not None and not math.isnan(v)]
    missing = len(values) - len(given)
    note = f"{missing} of {len(values)} seeds gave no value" if missing else ""
    if not given:
        return Estimate(None, level=level, note=note or "no seed was run")
    n, mean = len(given), math.fsum(given) / len(given)
    if n == 1 or not all(map(math.isfinite, given)):
        return Estimate(mean, n=n, level=level, note=note)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in given) / (n - 1))
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, level, note)


def render_table(
    rows: Sequence[Mapping[str, CellValue]], columns: Sequence[Column], title: str, notes: Sequence[str] = ()
) -> str:
    """Return the table as an HTML fragment, every text escaped.

    Args:
        rows: one mapping per method, column key -> value.
        columns: what to show, in order; the first column heads its row.
        title: caption.
        notes: sentences under the table.
    """
    best = _best(rows, columns)
    body = [[(c, *_text(row.get(c.key), c.digits), (i, c.key) in best) for c in columns] for i, row in enumerate(rows)]
    return _TABLE.render(title=title, columns=columns, body=body, notes=notes)


def to_markdown(
    rows: Sequence[Mapping[str, CellValue]], columns: Sequence[Column], title: str, notes: Sequence[str] = ()
) -> str:
    """Return the table as GitHub Markdown; arguments as in ``render_table``. The best of a column is bold."""
    best = _best(rows, columns)
    lines = [f"## {title}", "", _line([c.title for c in columns])]
    lines.append("|" + "|".join(" --- " if i == 0 else " ---: " for i in range(len(columns))) + "|")
    for i, row in enumerate(rows):
        cells = []
        for column in columns:
            text, interval = _text(row.get(column.key), column.digits)
            text = f"**{text}**" if (i, column.key) in best else text
            cells.append(f"{text} [{interval}]" if interval else text)
        lines.append(_line(cells))
    for note in notes:
        lines += ["", " ".join(note.split())]
    return "\n".join(lines) + "\n"


def page(title: str, body: str) -> str:
    """Return a page that needs nothing else around tables and plots.

    Args:
        title: of the window; it is escaped.
        body: HTML, such as ``render_table`` gives.
    """
    style = (
        "body{font:16px/1.45 system-ui,sans-serif;margin:2rem;color-scheme:light dark}"
        "table{border-collapse:collapse}small{display:block;opacity:.7}"
        "caption{text-align:left;font-weight:600;font-size:1.3rem;margin-bottom:.6rem}"
        "th,td{padding:.35rem .7rem;border-bottom:1px solid #8886;text-align:left;vertical-align:top}"
        "figure{background:#fefefe;color:#1f2329;max-width:52rem;margin:1.5rem 0;padding:1rem}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>\n'
        f"<body>\n{body}</body></html>\n"
    )


def to_csv(rows: Sequence[Mapping[str, CellValue]], columns: Sequence[Column]) -> str:
    """Return the table as CSV with full precision: an estimate takes the columns key, key_low, key_high and key_n.

    What is missing is an empty cell.
    """
    estimated = {c.key for c in columns if any(isinstance(row.get(c.key), Estimate) for row in rows)}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    suffixes = ("", "_low", "_high", "_n")
    writer.writerow([c.key + s for c in columns for s in (suffixes if c.key in estimated else ("",))])
    for row in rows:
        cells: list[object] = []
        for column in columns:
            value = row.get(column.key)
            if isinstance(value, Estimate):
                cells += [value.value, value.low, value.high, value.n]
            else:
                cells += [value] + ([None] * 3 if column.key in estimated else [])
        writer.writerow(["" if cell is None or cell != cell else cell for cell in cells])
    return stream.getvalue()


def cell_text(value: CellValue, digits: int = 3) -> str:
    """Return a cell in words, the interval in brackets."""
    text, interval = _text(value, digits)
    return f"{text} [{interval}]" if interval else text


def _text(value: CellValue, digits: int) -> tuple[str, str]:
    if isinstance(value, Estimate):
        has_interval = value.value is not None and value.low is not None and value.high is not None
        interval = f"{number(value.low, digits)}, {number(value.high, digits)}" if has_interval else ""
        return number(value.value, digits), interval
    if value is None:
        return NO_DATA, ""
    if isinstance(value, str):
        return value, ""
    return (str(value) if isinstance(value, int) else number(value, digits)), ""


def _best(rows: Sequence[Mapping[str, CellValue]], columns: Sequence[Column]) -> set[tuple[int, str]]:
    """Find the best row of each column that has a better side; ties are all best."""
    found: set[tuple[int, str]] = set()
    for column in columns:
        values: dict[int, float] = {}
        for i, row in enumerate(rows):
            cell = row.get(column.key)
            value = cell.value if isinstance(cell, Estimate) else cell
            if isinstance(value, int | float) and not math.isnan(value):
                values[i] = float(value)
        if column.better != "none" and len(values) > 1:
            top = max(values.values()) if column.better == "high" else min(values.values())
            found |= {(i, column.key) for i, value in values.items() if value == top}
    return found


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


_TABLE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<table class="leaderboard">
<caption>{{ title }}</caption>
<thead><tr>{% for c in columns %}<th scope="col">{{ c.title }}</th>{% endfor %}</tr></thead>
<tbody>
{% for cells in body %}
<tr>
{% for c, text, interval, best in cells %}
<{{ "th scope=row" if loop.first else "td" }}>{% if best %}<b>{{ text }}</b>{% else %}{{ text }}{% endif %}
{% if interval %} <small>[{{ interval }}]</small>{% endif %}</{{ "th" if loop.first else "td" }}>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
"""
)
