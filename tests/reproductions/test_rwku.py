from __future__ import annotations

from expunge.reproductions.rwku import RWKU


def numbers(**changed: float) -> dict[str, float]:
    names = ("fb", "qa", "aa", "neighbour", "fm_loss", "factual")
    base = {f"{m}/{n}": 50.0 for m in ("original", "idk", "gradient_ascent") for n in names}
    return base | {key.replace("__", "/"): value for key, value in changed.items()}


def test_the_checks_come_out_either_way() -> None:
    leaks = numbers(
        idk__aa=60.0, idk__fb=55.0, gradient_ascent__aa=60.0, gradient_ascent__fm_loss=54.0, idk__fm_loss=50.5,
        gradient_ascent__neighbour=20.0,
    )  # fmt: skip
    assert all(check.holds for check in RWKU().judge([leaks, leaks]))
    assert not any(check.holds for check in RWKU().judge([numbers(), numbers()]))
