from __future__ import annotations

from expunge.reports.svg import KNOWN_COLOURS, OTHER_COLOURS, styles


def test_known_models_have_the_same_colour_in_any_company() -> None:
    for names in (["original", "unlearned", "oracle"], ["x", "oracle", "y", "original"], ["unlearned"]):
        for name, look in styles(names).items():
            if name in KNOWN_COLOURS:
                assert look.colour == KNOWN_COLOURS[name]


def test_no_two_models_look_the_same() -> None:
    names = [
        "original",
        "unlearned",
        "oracle",
        "oracle-2",
        "oracle-3",
        *(f"model {i}" for i in range(2 * len(OTHER_COLOURS))),
    ]
    looks = styles(names)
    assert list(looks) == names
    assert len(set(looks.values())) == len(names)
