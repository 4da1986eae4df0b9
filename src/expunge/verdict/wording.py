"""The verdict in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge.verdict.families import decisive

if TYPE_CHECKING:
    from expunge.verdict.decision import Row, Verdict


def name(row: Row) -> str:
    """The statistic as a reader meets it."""
    return row.statistic.replace("_", " ")


def held_by_weights(level: str) -> str:
    """Why a guard or an adapter never removes."""
    if level == "guard":
        return "a guard stands in front of the model and the weights behind it still hold the data"
    return (
        "the adapter hides the data and the weights under it still hold it; "
        "merge the adapter and judge the merged weights"
    )


def broken_down(audits: Sequence[str]) -> str:
    """Which audits crashed, and what that leaves open."""
    return f"{', '.join(audits)} crashed, so what {'it' if len(audits) == 1 else 'they'} would have shown is not known"


def sentence(verdict: Verdict) -> str:
    """The answer in one sentence."""
    rows = [row for row in verdict.rows if row.about == "forget"]
    tested = [row for row in rows if row.result != "cannot tell"]
    different = [row for row in tested if row.result == "different"]
    if verdict.removal_level in ("guard", "adapter"):
        return f"Not removed: {held_by_weights(verdict.removal_level)}."
    if verdict.result == "not removed":
        return _not_removed(different, tested)
    if verdict.result == "removed":
        return (
            f"Removed: on {_all(len(tested))} the model is, within the stated margin, no different {_never(tested)} "
            f"(a model outside it would pass in at most {verdict.settings.alpha:.0%} of cases)."
        )
    return f"Inconclusive: {_undecided(rows, verdict)}."


def retained_sentence(verdict: Verdict) -> str:
    """What became of the knowledge that had to stay, in one sentence."""
    rows = [row for row in verdict.rows if row.about == "retain"]
    tested = [row for row in rows if row.result != "cannot tell"]
    if verdict.retained == "not measured":
        reason = "; ".join(dict.fromkeys(f"{name(row)}: {row.note}" for row in rows if row.note))
        return f"Not measured: {reason or 'no audit gave evidence about examples to keep'}."
    than = (
        "the original model" if any(row.baseline == "original" for row in tested) else "a model made without the data"
    )
    if verdict.retained == "kept":
        return f"Kept: on {_all(len(tested))} the model does not lose more than the stated margin against {than}."
    if verdict.retained == "damaged":
        damaged = [row for row in tested if row.result == "damaged"]
        worst = max(damaged, key=lambda row: abs(row.difference or 0) / (row.margin or 1))
        return (
            f"Damaged: on {len(damaged)} of {_tests(len(tested))} the model does worse than {than} by more than the "
            f"margin; largest: {name(worst)} ({_against(worst)})."
        )
    unclear = [row for row in tested if row.result in ("inconclusive", "not measured")]
    parts = []
    if unclear:
        needs = _needs(verdict.retained_need_n, unclear)
        parts.append(f"{len(unclear)} of {_tests(len(tested))} could not decide{needs}")
    if verdict.crashed:
        parts.append(broken_down(verdict.crashed))
    return f"Inconclusive: {'; '.join(parts)}."


def _not_removed(different: list[Row], tested: list[Row]) -> str:
    leaks = [row for row in different if row.direction == "leak"]
    oracle = any(row.baseline == "oracle" for row in different)
    worst = decisive(different)
    assert worst is not None  # there is no such sentence without a difference
    largest = f"largest: {name(worst)} ({_against(worst)}"
    on = f"Not removed: on {len(leaks or different)} of {_tests(len(tested))} the model"
    if leaks:
        if worst.remaining is not None and worst.remaining > 0:
            largest += f"; {min(worst.remaining, 1):.0%} of the original model's trace is left"
        still = "still differs from one that never saw" if oracle else "still knows more than of unseen examples about"
        return f"{on} {still} the data; {largest})."
    worse = "one that never saw the data would" if oracle else "not knowing explains"
    return f"{on} does worse than {worse}: it was made to avoid the data, or was broken; {largest})."


def _undecided(rows: list[Row], verdict: Verdict) -> str:
    unmeasured = [row for row in rows if row.result == "not measured"]
    unclear = [row for row in rows if row.result == "inconclusive"]
    parts = [] if rows else ["no audit gave evidence about the data to be forgotten"]
    tested = len([row for row in rows if row.result != "cannot tell"])
    if unclear:
        parts.append(f"{len(unclear)} of {_tests(tested)} could not decide{_needs(verdict.need_n, unclear)}")
    if unmeasured:
        parts.append(f"{name(unmeasured[0])} could not be tested ({unmeasured[0].note})")
        if len(unmeasured) > 1:
            parts.append(f"nor could {len(unmeasured) - 1} more")
    if verdict.crashed:
        parts.append(broken_down(verdict.crashed))
    return "; ".join(parts) or "no test here can tell a model that knows the data from one that does not"


def _needs(need_n: int | None, unclear: list[Row]) -> str:
    units = unclear[0].units if unclear else "examples"
    have = f" with {unclear[0].n} {units}" if unclear and unclear[0].n else ""
    if need_n is not None:
        return f"{have} (need n >= {need_n})"
    if any(row.baseline != "none" and row.original is None and row.about == "forget" for row in unclear):
        return f"{have} (the original model is needed to know how much there was to forget)"
    return f"{have} (the differences seen lie at the margin: more examples alone would not show removal)"


def _never(rows: list[Row]) -> str:
    if any(row.baseline == "oracle" for row in rows):
        return "from one that never saw the data"
    return "on the data than on examples that it never saw"


def _against(row: Row) -> str:
    if row.unlearned is None or row.baseline_mean is None:
        return "no values"
    return f"{row.unlearned:.3g} against {row.baseline_mean:.3g}"


def _tests(count: int) -> str:
    return f"{count} test" if count == 1 else f"{count} tests"


def _all(count: int) -> str:
    return "the one test that can tell" if count == 1 else f"all {count} tests that can tell"
