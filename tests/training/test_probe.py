"""What a probe measures and when it says stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.training.probe import Probe, ProbePoint, measure
from expunge.training.settings import StopSettings

Encode = Callable[..., Encoded]


def test_measures_are_means_over_examples_of_token_means(task: CausalLM, encode: Encode) -> None:
    sets = {"forget": encode(9), "retain": encode(5, 100)}
    task.model.train()
    found = measure(task, sets)
    assert task.model.training
    for role, encoded in sets.items():
        nll = []
        for tokens, start in zip(encoded.tokens, encoded.starts, strict=True):
            with torch.no_grad():
                log_p = task.model.eval()(torch.tensor(tokens)[None]).logits[0].log_softmax(-1)
            nll.append(float(-log_p[range(start - 1, len(tokens) - 1), tokens[start:]].mean()))
        assert found[role] == pytest.approx((np.mean(nll), np.mean(np.exp(-np.array(nll)))), rel=1e-4)


def test_processes_share_the_work_and_see_the_same(
    task: CausalLM, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "tokens_per_forward", 60)
    sets = {"forget": encode(9), "retain": encode(5, 100)}
    shares: list[torch.Tensor] = []

    def keep(share: torch.Tensor) -> torch.Tensor:
        shares.append(share)
        return share

    task.cost.forwards = 0
    alone = measure(task, sets)
    passes, task.cost.forwards = task.cost.forwards, 0
    for rank in range(3):
        measure(task, sets, rank, 3, keep)
    assert task.cost.forwards == passes
    summed = measure(task, sets, 0, 3, lambda _: torch.stack(shares[:3]).sum(0))
    assert {r: pytest.approx(v, rel=1e-6) for r, v in alone.items()} == summed


def test_the_subset_follows_from_ids(encode: Encode) -> None:
    settings = StopSettings(every=1, probe_size=4)
    forget = encode(12)
    chosen = Probe({"forget": forget}, settings, 0).sets["forget"].ids
    assert len(chosen) == 4
    assert set(Probe({"forget": forget.take(range(11, -1, -1))}, settings, 0).sets["forget"].ids) == set(chosen)
    assert set(Probe({"forget": forget}, settings, 1).sets["forget"].ids) != set(chosen)
    assert len(Probe({"forget": encode(3)}, settings, 0).sets["forget"]) == 3


def judged(points: list[tuple[float | None, float | None]], **settings: Any) -> Probe:
    probe = Probe({}, StopSettings(every=1, **settings), 0, vocabulary=100)
    probe.points = [ProbePoint(i, forget_nll=f, retain_nll=r) for i, (f, r) in enumerate(points)]
    return probe


@pytest.mark.parametrize(
    ("points", "settings", "reason"),
    [
        ([(1.0, 1.0), (2.0, 1.2)], {}, None),
        ([(1.0, 1.0), (2.0, 1.2)], {"forget_target": 2.0}, "forget target"),
        ([(1.0, 1.0), (1.9, 1.2)], {"forget_target": 2.0}, None),
        ([(1.0, 1.0), (2.0, 1.31)], {"retain_ceiling": 0.3}, "retain ceiling"),
        ([(1.0, 1.0), (2.0, 1.29)], {"retain_ceiling": 0.3}, None),
        ([(1.0, 1.0), (2.0, 4.7)], {}, "collapsed"),  # log 100 = 4.605
        ([(1.0, 4.7), (2.0, 4.8)], {}, None),  # knew nothing to begin with
        ([(1.0, 1.0), (math.nan, 1.0)], {}, "collapsed"),
        ([(1.0, 1.0), (1.0, math.inf)], {}, "collapsed"),
        ([(1.0, None), (3.0, None)], {"forget_target": 2.0, "retain_ceiling": 0.1}, "forget target"),
    ],
)
def test_rules_by_hand(points: Any, settings: dict[str, Any], reason: str | None) -> None:
    found = judged(points, **settings).verdict()
    assert found is None if reason is None else found is not None and found.startswith(reason)


@pytest.mark.parametrize(
    ("nlls", "stops"),
    [((5.0, 4.0), False), ((5.0, 1.0), False), ((1.0, 1.9), False), ((1.0, 2.0), True)],
)
def test_what_starts_over_beyond_the_target_trains_on(nlls: tuple[float, float], stops: bool) -> None:
    probe = judged([(nll, 5.0) for nll in nlls], forget_target=2.0)
    probe.starts_over = True
    assert bool(probe.verdict()) is stops


def test_distance_is_infinite_where_knowledge_broke() -> None:
    probe = judged([(1.0, 1.0), (1.8, 1.2), (2.1, 1.4), (math.nan, 1.0)], forget_target=2.0, retain_ceiling=0.3)
    assert [probe.distance(p) for p in probe.points] == pytest.approx([1.0, 0.2, math.inf, math.inf])
    assert probe.distance(ProbePoint(9)) == math.inf


def test_the_oracle_sets_the_target(task: CausalLM, encode: Encode) -> None:
    forget = encode(6)
    probe = Probe({"forget": forget}, StopSettings(every=1, forget_target="oracle"), 0, oracle=task)
    assert probe.target == measure(task, {"forget": forget})["forget"][0]
