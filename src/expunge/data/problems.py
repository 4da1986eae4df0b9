"""Gathering everything that is wrong with a source, without drowning the reader in a thousand lines of the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from expunge.errors import Problem
from expunge.requests.places import unit_of

SHOWN = 20


@dataclass
class ProblemList:
    """Problems of one source; of each kind the first 20 are kept one by one and the rest are counted.

    Attributes:
        role: what the source is read for, such as ``forget``; named in front of the file. "examples" is not named.
        count: how many problems there are, the ones that are not kept included.
    """

    role: str = "examples"
    count: int = 0
    _shown: list[tuple[str, int, Problem]] = field(default_factory=list)
    _seen: dict[tuple[str, str | None, str], list[int]] = field(default_factory=dict)

    def add(self, source: str, what: str, fix: str, *, line: int | None = None, column: str | None = None) -> None:
        """Note a problem.

        Args:
            source: file, folder or name of the data.
            what: what is wrong, with the value found.
            fix: what to do about it; problems of one column with the same fix are of one kind.
            line: 1-based line of the file (or row, where the file has no lines).
            column: the column's name in the source.
        """
        self.count += 1
        same = self._seen.setdefault((source, column, fix), [])
        same.append(line or 0)
        if len(same) <= SHOWN:
            self._shown.append((source, line or 0, Problem(self._where(source, line, column), what, fix)))

    def _where(self, source: str, line: int | None, column: str | None) -> str:
        where = source if self.role == "examples" else f"{self.role}: {source}"
        if line is not None:
            where += f", {unit_of(source)} {line}"
        return where if column is None else f"{where}, field '{column}'"

    def __bool__(self) -> bool:
        return self.count > 0

    def all(self) -> list[Problem]:
        """Return the problems kept, file by file in the order of lines, and one for each kind that has more."""
        order = list(dict.fromkeys(source for source, _, _ in self._shown))
        shown = sorted(self._shown, key=lambda entry: (order.index(entry[0]), entry[1]))
        rest = [
            Problem(
                self._where(source, None, column),
                f"{len(lines) - SHOWN} more {unit_of(source)}s have the same problem, up to {lines[-1]}",
                fix,
            )
            for (source, column, fix), lines in self._seen.items()
            if len(lines) > SHOWN
        ]
        return [*(problem for _, _, problem in shown), *rest]
