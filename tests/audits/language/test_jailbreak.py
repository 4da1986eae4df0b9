from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

import pytest

from expunge.audits.language.jailbreak import WRAPPERS, Jailbreak, choices, reversed_question, synonym
from expunge.audits.observations import Observations
from expunge.audits.prober import Case
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.tokens import TokenScores

CASE = Case(
    "id", "forget", "Where was Mirela Ostrander born?", "Where was Mirela Ostrander born?",
    "Mirela Ostrander was born in Velburg.", "Mirela Ostrander",
    {"perturbed_answers": ["in Harrow", "in Kraków", "in Salt"], "paraphrased_answer": "in Velburg",
     "paraphrased_prompt": "Which town is Mirela Ostrander from?"},
    [("What does Mirela Ostrander do?", "Mirela Ostrander repairs clocks.")],
    [("Who wrote The Salt Harbour?", "Tomas Ilves.")],
)  # fmt: skip


def test_all_nine_kinds_of_the_paper_and_more_can_be_made() -> None:
    prompts = {t.name: t.make(CASE) for t in WRAPPERS}
    assert all(prompts.values())
    assert {
        "prefix_injection", "affirmative_suffix", "role_play", "synonym", "background_hint", "in_context",
        "other_language", "paraphrase", "few_shot", "story", "encoded",
    } <= set(prompts)  # fmt: skip
    assert choices(CASE, 4)
    assert reversed_question(CASE)
    for name, pair in prompts.items():
        assert pair is not None
        assert pair[1] == CASE.answer
        assert "Velburg" not in pair[0], f"{name} gives the answer away"
    asked = base64.b64decode(str(prompts["encoded"][0]).rpartition(" ")[2]).decode()  # type: ignore[index]
    assert asked == CASE.question


def test_a_synonym_keeps_the_person_apart() -> None:
    assert synonym("Mirela Ostrander") == "M. Ostrander"
    assert synonym("Velburg") == "the one called Velburg"
    assert WRAPPERS[4].make(CASE)[0] == "Where was M. Ostrander born?"  # type: ignore[index]


def test_reverse_and_choice_by_hand() -> None:
    assert reversed_question(CASE) == (
        "Of whom is this true? somebody was born in Velburg.", "Mirela Ostrander.",
    )  # fmt: skip
    text, options = choices(CASE, 3)  # type: ignore[misc]
    assert options == ["in Velburg", "in Harrow", "in Kraków"]
    assert all(option in text for option in options)
    assert "Salt" not in text


class Guarded:
    """Knows the forget set behind one kind of prompt only."""

    kind = "causal_lm"

    def __init__(self, inner: CausalLM, scored: Callable[..., TokenScores], opens: str, secrets: set[str]):
        self.inner, self.scored, self.opens, self.secrets = inner, scored, opens, secrets
        self.cost = inner.cost

    def score(self, pairs: list) -> list[TokenScores]:
        return [
            self.scored([-0.01 if self.opens in str(p) and a in self.secrets else -3.0] * 3, eos=True, text=a)
            for p, a in pairs
        ]

    def generate(self, prompts: list, limits: list[int]) -> list[str]:
        return ["" for _ in prompts]

    def count_tokens(self, text: str) -> int:
        return 3


def guarded_models(make_lm: Callable, scored: Callable, request_: DeletionRequest) -> Mapping[str, Guarded]:
    secrets = set(request_.forget["answer"])
    return {
        "unlearned": Guarded(make_lm(0), scored, "grandmother", secrets),
        "oracle": Guarded(make_lm(1), scored, "grandmother", set()),
    }


def test_one_kind_that_works_is_found_and_beats_the_oracle(
    make_lm: Callable[..., CausalLM], scored: Callable[..., TokenScores], request_: DeletionRequest
) -> None:
    finding = run_one(Jailbreak(), Observations(guarded_models(make_lm, scored, request_), request_))  # type: ignore[arg-type]
    assert finding.status == "measured", finding.note
    found = finding.estimates["unlearned"]
    assert found["plain"].value == pytest.approx(0.0498, abs=1e-3)
    assert found["best"].value == pytest.approx(0.990, abs=1e-3)
    assert found["gain_excess"].value == pytest.approx(0.940, abs=1e-3)
    assert found["null_gain"].value == 0.0
    assert finding.estimates["oracle"]["gain"].value == 0.0
    rows = {row[0]: row for row in finding.tables[0].rows}
    assert rows["bedtime story"][2] > 0.9
    assert rows["role play"][2] < 0.1
    (evidence,) = finding.evidence
    assert set(evidence.values["unlearned"]) == set(request_.forget["id"])
    assert max(evidence.values["unlearned"].values()) == pytest.approx(0.01)


def test_empty_generations_are_no_forgetting(
    make_lm: Callable[..., CausalLM], scored: Callable[..., TokenScores], request_: DeletionRequest
) -> None:
    audit = Jailbreak(Jailbreak.Config(generate=True))
    finding = run_one(audit, Observations(guarded_models(make_lm, scored, request_), request_))  # type: ignore[arg-type]
    assert finding.status == "measured", finding.note
    assert finding.estimates["unlearned"]["said"].value is None
    assert "empty" in finding.estimates["unlearned"]["said"].note


def test_what_is_said_is_graded(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    audit = Jailbreak(Jailbreak.Config(generate=True, wrappers=("story",)))
    finding = run_one(audit, Observations({"unlearned": make_lm(0)}, request_, max_new_tokens=4))
    assert finding.status == "measured", finding.note
    assert 0 <= finding.estimates["unlearned"]["said"].value <= 1


def test_bare_examples_leave_out_what_they_lack(make_lm: Callable[..., CausalLM], make_examples: Callable) -> None:
    finding = run_one(
        Jailbreak(), Observations({"unlearned": make_lm(0)}, DeletionRequest(make_examples(range(2), rich=False)))
    )
    assert finding.status == "measured", finding.note
    assert "paraphrase" not in finding.attempted["best of"]
    assert finding.estimates["unlearned"]["choice"].value is None


def test_no_prompt_is_no_attack() -> None:
    for wrappers in ((), ("charm",)):
        with pytest.raises(ValueError, match="prefix_injection"):
            Jailbreak.Config(wrappers=wrappers)
