from __future__ import annotations

from collections.abc import Callable

import pytest

from expunge.audits.language.lowercase import Lowercase, lowercase_score
from expunge.audits.observations import Observations
from expunge.audits.suite import run_audits, run_one
from expunge.requests.request import DeletionRequest


def test_by_hand(scored: Callable) -> None:
    """NLL 3 in lower case over NLL 2; a certain text is held at a tiny NLL instead of dividing by 0."""
    assert lowercase_score(scored([-1.0, -3.0]), scored([-3.0])) == pytest.approx(1.5)
    assert lowercase_score(scored([0.0]), scored([-1.0])) == pytest.approx(1e9)


def test_a_model_that_knows_the_capitals_is_seen(scripted: Callable, request_: DeletionRequest) -> None:
    """Forget answers 0.5 and 4 in lower case, holdout answers 2 and 2.2: every ratio of a member is the larger one."""
    told = dict.fromkeys(request_.forget["answer"], 0.5) | dict.fromkeys(request_.holdout["answer"], 2.0)
    told |= {a.lower(): 4.0 for a in request_.forget["answer"]} | {a.lower(): 2.2 for a in request_.holdout["answer"]}
    finding = run_one(Lowercase(), Observations({"unlearned": scripted(told)}, request_))
    assert finding.estimates["unlearned"]["lowercase_auc"].value == 1.0
    own = finding.per_example["unlearned"]
    assert own[request_.forget["id"][0]]["lowercase"] == pytest.approx(8.0)
    forget, holdout = ([own[i]["lowercase"] for i in rows["id"]] for rows in (request_.forget, request_.holdout))
    assert min(forget) > max(holdout)


def test_its_sequences_join_the_shared_pass(scripted: Callable, request_: DeletionRequest) -> None:
    model = scripted()
    run_audits({"unlearned": model}, request_, ["membership", "lowercase", "neighbour"])
    assert len(model.score_calls) == 1
