from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from expunge.audits.base import Evidence
from expunge.errors import BadInput
from expunge.verdict import VerdictSettings, decide

KNOWN, UNKNOWN, N = 0.9, 0.1, 40


def values(mean, seed, n=N, noise=0.05, prefix="x"):
    """Per-example values around a mean, on shared example effects."""
    effect = 0.05 * np.random.default_rng(99).normal(size=n)
    own = noise * np.random.default_rng(seed).normal(size=n)
    return {f"{prefix}{i}": float(mean + effect[i] + own[i]) for i in range(n)}


def evidence(unlearned=UNKNOWN, *, name="answer_probability", oracles=1, n=N, about="forget", high=True, **extra):
    """Evidence of one statistic; means are given as if knowing were high."""
    sign = 1 if high else -1
    base = KNOWN if about == "retain" else UNKNOWN
    models = {"unlearned": values(unlearned, 1, n), "original": values(KNOWN, 2, n)}
    models |= {"oracle" if k == 0 else f"oracle-{k + 1}": values(base, 3 + k, n) for k in range(oracles)}
    flipped = {m: {i: sign * x for i, x in v.items()} for m, v in models.items()}
    return Evidence(name, about, flipped, knowing_is="high" if high else "low", **extra)


def holdout(unlearned=UNKNOWN, unlearned_control=UNKNOWN, original=True, n=80):
    models = {"unlearned": values(unlearned, 1, n)}
    control = {"unlearned": values(unlearned_control, 5, n, prefix="h")}
    if original:
        models["original"] = values(KNOWN, 2, n)
        control["original"] = values(UNKNOWN, 6, n, prefix="h")
    return Evidence("answer_probability", "forget", models, control)


# ---- the four ends


@pytest.mark.parametrize("oracles", [1, 2, 4])
@pytest.mark.parametrize("high", [True, False])
def test_like_the_oracle_is_removed(oracles, high):
    verdict = decide([evidence(oracles=oracles, high=high), evidence(name="nll", oracles=oracles, high=not high)])
    assert verdict.result == "removed"
    assert "all 2 tests" in verdict.sentence
    assert verdict.need_n is None


@pytest.mark.parametrize("oracles", [1, 2, 4])
@pytest.mark.parametrize("high", [True, False])
def test_untouched_is_a_leak(oracles, high):
    untouched = evidence(oracles=oracles, high=high)
    untouched = Evidence(
        untouched.statistic,
        "forget",
        {**untouched.values, "unlearned": untouched.values["original"]},
        {},
        untouched.knowing_is,
    )
    verdict = decide([untouched])
    (row,) = verdict.rows
    assert verdict.result == "not removed"
    assert (row.result, row.direction) == ("different", "leak")
    assert row.remaining == pytest.approx(1.0)
    assert "100% of the original model's trace is left" in verdict.sentence


def test_a_refusing_model_is_suppressed():
    verdict = decide([evidence(-0.5), evidence(name="nll")])
    assert verdict.result == "not removed"
    assert [row.direction for row in verdict.rows] == ["suppression", None]
    assert "1 of 2 tests" in verdict.sentence
    assert "avoid" in verdict.sentence


def test_few_examples_are_inconclusive_and_the_need_would_do():
    verdict = decide([evidence(n=6)])
    assert verdict.result == "inconclusive"
    assert verdict.need_n >= 8
    assert f"need n >= {verdict.need_n}" in verdict.sentence
    assert decide([evidence(n=verdict.need_n)]).result == "removed"


def test_a_difference_at_the_margin_needs_words_not_numbers():
    verdict = decide([evidence(UNKNOWN + 0.26 * (KNOWN - UNKNOWN), n=30)], settings=VerdictSettings(alpha=0.0001))
    assert verdict.result == "inconclusive"
    assert verdict.need_n is None
    assert "margin" in verdict.sentence
    assert "opposite" in verdict.rows[0].note


def test_one_example_decides_nothing():
    assert decide([evidence(KNOWN, n=1)]).result == "inconclusive"


# ---- guards


@pytest.mark.parametrize("level", ["guard", "adapter"])
@pytest.mark.parametrize("mean", [UNKNOWN, KNOWN])
def test_a_guard_never_removes(level, mean):
    verdict = decide([evidence(mean)], removal_level=level)
    assert verdict.result == "not removed"
    assert "weights" in verdict.sentence
    assert verdict.by_tests == ("removed" if mean == UNKNOWN else "not removed")
    assert decide([], removal_level=level).result == "not removed"


def test_unknown_level_and_unknown_setting_are_refused():
    with pytest.raises(BadInput, match="approximate"):
        decide([], removal_level="magic")
    with pytest.raises(ValidationError):
        VerdictSettings(alfa=0.05)


# ---- a training seed that meets the unknown in a way of its own


def short_of(forget: float, unseen: float, retain: float, *, measured: bool = True):
    """A verdict on a model that falls short of never having known on these sets."""
    oracles = {f"oracle{k}": 7 + i for i, k in enumerate(("", "-2", "-3"))}
    control = {"unlearned": values(UNKNOWN - unseen, 5, prefix="h"), "original": values(UNKNOWN, 6, prefix="h")}
    control |= {name: values(UNKNOWN, seed, prefix="h") for name, seed in oracles.items()}
    about = evidence(UNKNOWN - forget, oracles=3, control=control if measured else {})
    return decide([about, evidence(KNOWN - retain, oracles=3, about="retain")])


def test_a_shortfall_on_everything_unseen_is_not_held_against_a_model_that_keeps_the_rest():
    verdict = short_of(0.6, 0.6, 0.0)
    assert verdict.retained == "kept"
    assert verdict.result == "inconclusive"
    assert verdict.rows[0].result == "inconclusive"
    assert "another training seed" in verdict.rows[0].note


@pytest.mark.parametrize("unseen", [0.0, 0.1, 0.3])
def test_a_shortfall_that_singles_out_the_forget_set_is_suppression(unseen):
    verdict = short_of(0.6, unseen, 0.0)
    assert verdict.retained == "kept"
    assert verdict.result == "not removed"
    assert verdict.rows[0].direction == "suppression"
    assert "another training seed" not in verdict.rows[0].note


def test_a_shortfall_that_damages_the_rest_or_has_no_holdout_is_suppression():
    assert short_of(0.6, 0.6, 0.6).result == "not removed"
    assert short_of(0.6, 0.6, 0.0, measured=False).result == "not removed"


@given(st.floats(0.3, 0.8), st.floats(-0.6, 0.6))
@settings(max_examples=15)
def test_a_leak_is_never_explained_by_the_holdout(known, unseen):
    assert short_of(-known, -unseen, 0.0).result == "not removed"


# ---- what was not measured


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("model", ["unlearned", "oracle", "original"])
def test_a_value_that_is_no_number_blocks_removal_and_is_named(bad, model):
    broken = evidence(name="min_k")
    spoiled = {**broken.values, model: {**broken.values[model], "x3": bad}}
    verdict = decide([evidence(), Evidence("min_k", "forget", spoiled)])
    assert verdict.result == "inconclusive"
    assert verdict.rows[1].result == "not measured"
    assert "min k" in verdict.sentence
    assert "NaN" in verdict.sentence
    json.dumps(verdict.to_dict(), allow_nan=False)
    leak = decide([evidence(KNOWN), Evidence("min_k", "forget", spoiled)])
    assert leak.result == "not removed"


@pytest.mark.parametrize("model", ["unlearned", "oracle", "original"])
def test_other_examples_on_one_side_block_removal_and_are_named(model):
    short = evidence()
    lacking = {i: v for i, v in short.values[model].items() if i != "x7"}
    verdict = decide([Evidence("nll", "forget", {**short.values, model: lacking})])
    assert verdict.result == "inconclusive"
    assert verdict.rows[0].note.startswith(f"{model} has no value on 1 of {N} examples (such as x7)")


def test_nothing_to_compare_with():
    alone = {name: v for name, v in evidence().values.items() if name != "oracle"}
    verdict = decide([Evidence("nll", "forget", alone)])
    assert verdict.result == "inconclusive"
    assert "neither an oracle nor a holdout" in verdict.rows[0].note
    assert decide([]).result == "inconclusive"


def test_without_the_original_a_leak_shows_but_removal_does_not():
    for mean, expected in ((KNOWN, "not removed"), (UNKNOWN, "inconclusive")):
        given_ = {name: v for name, v in evidence(mean).values.items() if name != "original"}
        assert decide([Evidence("nll", "forget", given_)]).result == expected


def test_a_statistic_that_cannot_tell_takes_no_part():
    useless = evidence(name="length")
    useless = Evidence("length", "forget", {**useless.values, "original": useless.values["oracle"]})
    assert decide([useless]).result == "inconclusive"
    verdict = decide([useless, evidence()])
    assert verdict.result == "removed"
    assert verdict.rows[0].result == "cannot tell"
    assert verdict.rows[0].p_equivalent is None
    assert any("length" in reason for reason in verdict.reasons)


def test_beside_an_audit_that_crashed_nothing_is_removed_or_kept():
    gone, stays = evidence(), evidence(unlearned=KNOWN, name="retain_nll", about="retain")
    assert (decide([gone, stays]).result, decide([gone, stays]).retained) == ("removed", "kept")
    verdict = decide([gone, stays], crashed=["rouge", "truth_ratio"])
    assert (verdict.result, verdict.by_tests, verdict.retained) == ("inconclusive",) * 3
    assert verdict.sentence == "Inconclusive: rouge, truth_ratio crashed, so what they would have shown is not known."
    assert verdict.retained_sentence == verdict.sentence
    assert "leave them out" in verdict.reasons[0]
    assert verdict.to_dict()["crashed"] == ["rouge", "truth_ratio"]
    assert verdict.need_n is None
    assert "no audit gave evidence" in decide([], crashed=["rouge"]).sentence
    # What was found stands.
    leak = decide([evidence(unlearned=KNOWN)], crashed=["rouge"])
    assert leak.result == "not removed"
    assert "rouge crashed" in leak.reasons[0]


def test_constant_statistics_do_not_crash():
    ids = [f"x{i}" for i in range(30)]

    def flat(**levels):
        return Evidence("rouge", "forget", {name: dict.fromkeys(ids, level) for name, level in levels.items()})

    assert decide([flat(unlearned=0.0, oracle=0.0, original=1.0)]).result == "removed"
    assert decide([flat(unlearned=1.0, oracle=0.0, original=1.0)]).result == "not removed"
    assert decide([flat(unlearned=0.0, oracle=0.0, original=0.0)]).result == "inconclusive"
    assert decide([flat(unlearned=0.0, oracle=0.5, original=1.0)]).rows[0].direction == "suppression"


# ---- margins


def test_the_margin_says_where_it_came_from():
    one = decide([evidence()]).rows[0]
    gap = one.original - one.baseline_mean
    assert one.margin == pytest.approx(0.25 * gap)
    assert "not measured" in one.margin_source
    calm = decide([evidence(oracles=3)]).rows[0]
    assert "needs less" in calm.margin_source
    restless = evidence(oracles=2)
    apart = {i: v + 0.3 for i, v in restless.values["oracle-2"].items()}
    noisy = decide([Evidence("nll", "forget", {**restless.values, "oracle-2": apart})]).rows[0]
    assert noisy.margin > 0.25 * (noisy.original - noisy.baseline_mean)
    assert "2 oracles" in noisy.margin_source


def test_more_agreeing_oracles_never_widen_the_margin():
    margins = [decide([evidence(oracles=k)]).rows[0].margin for k in (2, 3, 6)]
    assert margins[0] >= margins[-1] * 0.99


def test_oracles_as_far_apart_as_the_original_cannot_tell():
    restless = evidence(oracles=2)
    apart = {i: v + 0.7 for i, v in restless.values["oracle-2"].items()}
    models = {**restless.values, "oracle-2": apart}
    drowned = Evidence("nll", "forget", models)
    verdict = decide([drowned, evidence()])
    assert verdict.rows[0].result == "cannot tell"
    assert "differ among themselves" in verdict.rows[0].note
    assert verdict.result == "removed"
    far = {**models, "unlearned": {i: v - 20 for i, v in models["unlearned"].items()}}
    assert decide([Evidence("nll", "forget", far), evidence()]).result == "not removed"


# ---- holdout


def test_holdout_stands_in_for_the_oracle():
    assert decide([holdout()]).result == "removed"
    assert decide([holdout(KNOWN)]).result == "not removed"
    assert decide([holdout()]).rows[0].baseline == "holdout"
    assert decide([holdout(original=False)]).result == "inconclusive"
    assert decide([holdout(KNOWN, original=False)]).result == "not removed"


def test_a_model_broken_everywhere_is_not_removed_by_looking_alike():
    verdict = decide([holdout(-0.8, -0.8)])
    assert verdict.result == "not removed"
    assert verdict.rows[0].direction == "suppression"
    assert "broken" in verdict.sentence


# ---- groups


def test_groups_become_the_units_from_ten_on():
    def groups(count):
        return {f"x{i}": f"g{i % count}" for i in range(N)}

    assert decide([evidence(groups=groups(12))]).rows[0].units == "groups"
    assert decide([evidence(groups=groups(12))]).rows[0].n == 12
    few = decide([evidence(groups=groups(5))]).rows[0]
    assert (few.units, few.n) == ("examples", N)
    assert "5 group" in few.note


# ---- retained knowledge


@pytest.mark.parametrize("oracles", [0, 1, 3])
def test_retained_knowledge(oracles):
    def verdict(mean, n=N):
        return decide([evidence(), evidence(mean, about="retain", oracles=oracles, n=n)])

    assert verdict(KNOWN).retained == "kept"
    assert verdict(KNOWN + 0.3).retained == "kept"
    assert verdict(0.5).retained == "damaged"
    few = verdict(KNOWN, 4)
    assert few.retained == "inconclusive"
    assert few.retained_need_n >= 8
    assert verdict(0.5).result == "removed"
    assert few.rows[1].baseline == ("oracle" if oracles else "original")


def test_retained_knowledge_without_evidence():
    verdict = decide([evidence()])
    assert verdict.retained == "not measured"
    assert verdict.retained_sentence


# ---- laws

means = st.sampled_from([-0.5, 0.0, UNKNOWN, 0.25, 0.5, KNOWN])


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(N)), means)
def test_the_order_of_ids_does_not_matter(order, mean):
    straight = evidence(mean)
    shuffled = {name: {f"x{i}": v[f"x{i}"] for i in order} for name, v in straight.values.items()}
    assert decide([Evidence(straight.statistic, "forget", shuffled)]) == decide([straight])


@settings(max_examples=30, deadline=None)
@given(means, st.integers(1, 3), st.integers(5, 40))
def test_swapping_what_knowing_is_mirrors_the_direction(mean, oracles, n):
    here = evidence(mean, oracles=oracles, n=n)
    there = Evidence(here.statistic, "forget", here.values, knowing_is="low")
    a, b = decide([here]), decide([there])
    assert a.result == b.result
    mirror = {"leak": "suppression", "suppression": "leak", None: None}
    assert b.rows[0].direction == mirror[a.rows[0].direction]
    assert b.rows[0].p_different == pytest.approx(a.rows[0].p_different)


@settings(max_examples=30, deadline=None)
@given(means, st.integers(1, 2), st.integers(3, 40))
def test_negating_values_and_knowing_changes_nothing(mean, oracles, n):
    a = decide([evidence(mean, oracles=oracles, n=n)]).rows[0]
    b = decide([evidence(mean, oracles=oracles, n=n, high=False)]).rows[0]
    assert (a.result, a.direction, a.need_n) == (b.result, b.direction, b.need_n)
    assert a.margin == pytest.approx(b.margin)
    if a.low is not None:
        assert (a.low, a.high) == pytest.approx((-b.high, -b.low))


@settings(max_examples=30, deadline=None)
@given(st.lists(means, min_size=1, max_size=4), st.sampled_from([KNOWN, -1.0]))
def test_evidence_far_away_only_moves_away_from_removed(seen, far):
    pieces = [evidence(mean, name=f"s{i}") for i, mean in enumerate(seen)]
    assert decide([*pieces, evidence(far, name="far")]).result == "not removed"


@settings(max_examples=20, deadline=None)
@given(means, st.integers(2, 40), st.integers(0, 3))
def test_the_verdict_is_json(mean, n, oracles):
    verdict = decide([evidence(mean, n=n, oracles=oracles), evidence(about="retain", n=n, oracles=oracles)])
    plain = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert plain["result"] == verdict.result
    assert plain["rows"][0]["statistic"] == "answer_probability"
    assert plain["retained"]["result"] == verdict.retained
