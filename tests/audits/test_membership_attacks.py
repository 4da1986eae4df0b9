from __future__ import annotations

from collections.abc import Callable

from expunge.audits.membership_attacks import attack_finding, attack_scalars, roc_plot
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.requests.request import DeletionRequest


def test_a_score_that_ranks_perfectly_and_one_that_is_absent(scripted: Callable, request_: DeletionRequest) -> None:
    seen = Observations({"unlearned": scripted()}, request_)
    values = Values(seen)
    values.add("unlearned", "forget", "s", {i: 1.0 + k for k, i in enumerate(request_.forget["id"])})
    values.add("unlearned", "holdout", "s", {i: -1.0 - k for k, i in enumerate(request_.holdout["id"])})
    finding = attack_finding("some", seen, values, "s", "S", {"budget": 3})
    assert {s.name for s in attack_scalars("s", "S")} == set(finding.estimates["unlearned"])
    assert [e.value for e in finding.estimates["unlearned"].values()] == [1.0, 1.0, 1.0]
    assert finding.attempted == {"budget": 3, "members": 8, "non-members": 8}
    assert roc_plot(values, ["unlearned"], "s", "S").series["unlearned"][-1] == (1.0, 1.0)
    missing = attack_finding("some", seen, Values(seen), "s", "S", {})
    assert missing.status == "no data"
    assert missing.note
    assert not missing.estimates
