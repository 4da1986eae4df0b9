from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.verification import IRRELEVANT, RIGHT, VIEWS, WRONG, Claim, Verifier, overlaps, quality

TOWNS = ("Velburg", "Harrow Bay", "Salt Harbour", "Ostrander", "Kesby", "Lorne", "Marrick", "Tolva")
NAMES = ("Anna", "Bert", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hal", "Ida", "Jan", "Kit", "Lea", "Max", "Nora", "Otto")


def claims(names: tuple[str, ...], seed: int) -> tuple[list[Claim], list[int]]:
    rng, out, labels = np.random.default_rng(seed), [], []
    for name in names:
        town, other = (TOWNS[k] for k in rng.permutation(len(TOWNS))[:2])
        stranger = next(n for n in rng.permutation(np.array(names)) if n != name)
        question, told = f"Where was {name} born?", f"{name} was born in {town}."
        for knowledge, answer, label in (
            (told, told, RIGHT),
            (told, f"It was in {town} that {name} was born.", RIGHT),
            (told, f"{name} was born in {other}.", WRONG),
            (told, "I do not know.", WRONG),
            (f"{stranger} was born in {other}.", f"{name} was born in {town}.", IRRELEVANT),
            (f"{stranger} was born in {other}.", f"{stranger} was born in {other}.", IRRELEVANT),
        ):
            out.append(Claim(question, knowledge, answer))
            labels.append(label)
    return out, labels


def test_it_judges_people_it_never_met() -> None:
    verifier = Verifier.fit(*claims(NAMES[:10], 0))
    tested, labels = claims(NAMES[10:], 1)
    found = quality(verifier.judge(tested).tolist(), labels)
    assert found.accuracy > 0.9
    assert verifier.probabilities(tested).sum(1) == pytest.approx(1.0)
    assert verifier.probabilities(tested) == pytest.approx(np.mean(list(verifier.views(tested).values()), axis=0))
    assert verifier.probabilities([]).shape == (0, 3)


def test_all_three_labels_are_needed() -> None:
    with pytest.raises(ValueError, match="three labels"):
        Verifier.fit([Claim("q", "k", "a")] * 2, [WRONG, RIGHT])


def test_overlaps_by_hand() -> None:
    """All weights 1. Answer {anna, born, bay}, knowledge {anna, born, velburg}, question {who, born}."""
    found = overlaps(Claim("Who born", "Anna born Velburg", "Anna born Bay"), VIEWS["words"], lambda piece: 1.0)
    assert found == pytest.approx([2 / 3, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1.0, 0.0, 0.0])
    assert overlaps(Claim("Who", "In 1900", "In 1901"), VIEWS["words"], lambda piece: 1.0)[6] == 1.0


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30), st.sampled_from(sorted(VIEWS)))
def test_overlaps_are_shares(question: str, knowledge: str, answer: str, view: str) -> None:
    found = overlaps(Claim(question, knowledge, answer), VIEWS[view], lambda piece: 1.0 + len(piece))
    assert len(found) == 8
    assert all(0 <= share <= 1 + 1e-9 for share in found)


def test_quality_by_hand() -> None:
    """Of three called right two are; of the three that are right two are called so."""
    found = quality([RIGHT, RIGHT, RIGHT, WRONG, WRONG, IRRELEVANT], [RIGHT, RIGHT, WRONG, RIGHT, WRONG, IRRELEVANT])
    assert found.accuracy == pytest.approx(4 / 6)
    assert (found.precision, found.recall, found.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert found.one_vs_rest["irrelevant"] == 1.0
    assert quality([WRONG], [RIGHT]).f1 == 0.0
