from __future__ import annotations

from collections.abc import Callable

import pytest

from expunge.audits.observations import Observations
from expunge.audits.prober import Transform, cases_of, everywhere, measure, probes_of
from expunge.errors import BrokenScores
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_a_case_knows_its_surroundings(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    seen = Observations({"unlearned": make_lm(0)}, request_)
    cases = cases_of(seen, "forget", shots=2)
    assert len(cases) == len(request_.forget)
    case = next(c for c in cases.values() if c.question == "Where was person 2 born?")
    assert case.name == "2"
    assert [question for question, _ in case.related] == ["What does person 2 do?"]
    assert len(case.others) == 2
    retained = set(request_.retain["prompt"])
    assert all(question in retained for question, _ in case.others)
    assert case.ask("Why?") == ("Why?", case.answer)


def test_only_what_all_cases_allow_is_comparable(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    seen = Observations({"unlearned": make_lm(0)}, request_)
    transforms = [
        Transform("all", "", lambda c: c.ask(c.question)),
        Transform("some", "", lambda c: c.ask("Why?") if "born" in c.question else None),
        Transform("none", "", lambda c: None),
    ]
    probes = probes_of({role: cases_of(seen, role) for role in ("forget", "holdout")}, transforms)
    assert everywhere(probes, transforms, ["forget", "holdout"]) == ["all"]
    assert len(probes["forget", "some"]) == 4
    assert probes["forget", "none"] == {}


def test_each_prompt_is_scored_once(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    lm = make_lm(0)
    seen = Observations({"unlearned": lm}, request_)
    plain = Transform("plain", "", lambda c: c.ask(c.question))
    again = Transform("again", "", lambda c: c.ask(c.question))
    probes = probes_of({"forget": cases_of(seen, "forget")}, [plain, again])
    scores = measure(seen, "unlearned", probes)
    assert seen.counts()["unlearned"].sequences_run == len(request_.forget)
    direct = {i: s.nll for i, s in seen.scores("unlearned", "forget").items()}
    assert {i: s.nll for i, s in scores["forget", "again"].items()} == pytest.approx(direct)


def test_broken_scores_are_no_answer(scripted: type, request_: DeletionRequest) -> None:
    broken = dict.fromkeys(request_.forget["answer"], float("nan"))
    seen = Observations({"unlearned": scripted(broken)}, request_)
    probes = probes_of({"forget": cases_of(seen, "forget")}, [Transform("plain", "", lambda c: c.ask(c.question))])
    with pytest.raises(BrokenScores):
        measure(seen, "unlearned", probes)
