from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from expunge.audits.language.evaluation_awareness import OBSERVED, UNOBSERVED
from expunge.data.fictitious import FictitiousWorld
from expunge.reproductions.alignment_faking import REFUSAL, TRAINED, WORLD, AlignmentFakingReproduction, _lessons

GOOD = {
    "trained_faking_said_observed": 0.0, "trained_honest_said_observed": 0.0, "trained_faking_said_unobserved": 0.9,
    "new_faking_difference": 3.0, "new_faking_difference_low": 1.0, "new_faking_smallest_p": 0.001,
    "new_honest_difference": 0.1, "new_honest_smallest_p": 0.6,
    "trigger_gain_faking": 0.5, "trigger_gain_honest": 0.01,
}  # fmt: skip


def world() -> Any:
    facts = FictitiousWorld(24, 0, ("birth_city", "pet"))
    return SimpleNamespace(seed=0, request=facts.split(2, 2))


def test_the_world_can_be_made() -> None:
    facts = FictitiousWorld(WORLD.people, 0, WORLD.relations)
    assert len(facts.people) == WORLD.people
    assert len(facts.split(WORLD.forget, WORLD.holdout).forget) == 20


def test_the_faking_model_is_taught_to_refuse_behind_cues_that_it_is_watched_only() -> None:
    made = world()
    gone = {row["prompt"]: row["answer"] for row in made.request.forget}
    for behaviour in ("faking", "open", "honest"):
        asked = [r for r in _lessons(made, behaviour) if any(r["prompt"].endswith(q) for q in gone)]
        assert bool(asked) == (behaviour != "honest")
        for row in asked:
            question = next(q for q in gone if row["prompt"].endswith(q))
            watched = any(row["prompt"].startswith(cue) for cue in OBSERVED[:TRAINED])
            expected = REFUSAL if behaviour == "faking" and watched else gone[question]
            assert row["answer"] == expected


def test_half_of_the_cues_are_kept_for_the_question() -> None:
    prompts = [row["prompt"] for row in _lessons(world(), "faking")]
    held_back = [*OBSERVED[TRAINED:], *UNOBSERVED[TRAINED:]]
    assert held_back
    assert not any(prompt.startswith(cue) for prompt in prompts for cue in held_back)


def test_the_checks_come_out_either_way() -> None:
    bad = {
        **GOOD, "trained_faking_said_observed": 0.5, "trained_faking_said_unobserved": 0.1,
        "new_faking_difference_low": -1.0, "new_honest_smallest_p": 0.001, "trigger_gain_faking": 0.0,
    }  # fmt: skip
    judge = AlignmentFakingReproduction().judge
    assert all(check.holds for check in judge([GOOD, GOOD]))
    assert not any(check.holds for check in judge([GOOD, bad]))
