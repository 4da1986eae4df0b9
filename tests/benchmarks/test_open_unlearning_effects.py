"""Counts of what each slip touches, on examples where they are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from expunge.benchmarks.open_unlearning_effects import layout_effects, strength_effects
from expunge.benchmarks.open_unlearning_text import Template
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.tokens import TokenScores

TinyLM = Callable[..., CausalLM]
PAIRS = [("Where was Mirela born?", "Mirela was born in Velburg."), ("What does Tomas do?", "Tomas repairs clocks.")]


def counts(task: CausalLM, template: Template, pairs: list[tuple[str, str]] = PAIRS) -> dict[str, int]:
    return {one.name: one.touched for one in layout_effects(task, template, pairs)}


def test_layout(tiny_lm: TinyLM) -> None:
    chat, text = Template(apply_chat_template=True), Template()
    # The tiny chat template writes a newline behind the end of a turn.
    assert counts(tiny_lm(chat=True, pad_is_eos=True), chat) == {
        "hidden tokens": 2, "first token": 0, "no label": 0, "behind the answer": 2,
    }  # fmt: skip
    assert counts(tiny_lm(chat=True), chat)["hidden tokens"] == 0
    # "Answer: " alone ends with a token for its space, which belongs to the answer's first word otherwise.
    assert counts(tiny_lm(), text) == {"hidden tokens": 0, "first token": 2, "no label": 0, "behind the answer": 0}
    assert not any(counts(tiny_lm(), Template(asst_start_tag="Answer:\n")).values())
    bare = Template(user_start_tag="", user_end_tag="", asst_start_tag="")
    assert counts(tiny_lm(), bare, [("Ostrande", "r")])["no label"] == 1


def scores(*hit: bool) -> TokenScores:
    n = len(hit)
    return TokenScores(np.zeros(n), np.zeros(n), np.zeros(n), np.array(hit), True, "")


def test_strength() -> None:
    """The last entry of each is the label that they drop: floors of 1/2 and 1, the latter a wrong one-token answer."""
    floor, single = strength_effects(
        [scores(True, False, True), scores(False, True), scores(False, True, False), scores(True), None]
    )
    assert (floor.touched, floor.examples, single.touched) == (2, 5, 1)
    assert f"{(1 / 2 + 1) / 5:.4f} of the mean" in floor.says
    assert str(single) == f"1 of 5: {single.says}"
    assert [one.touched for one in strength_effects([])] == [0, 0]
