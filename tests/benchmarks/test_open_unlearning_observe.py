"""What is asked of a model: all answers in the order of the file, and only the generations that are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from expunge.benchmarks.open_unlearning_observe import effects_of, groups_of, laid_out, observe, sets_of
from expunge.benchmarks.open_unlearning_text import Template, TemplateEncoder, parity_scores
from expunge.benchmarks.tofu_data import load_split
from expunge.runs.progress import Progress
from expunge.tasks.causal_lm import CausalLM

TinyLM = Callable[..., CausalLM]
Sets = dict[str, Dataset]
TEMPLATE = Template()


@pytest.fixture
def sets(tofu_files: Callable[..., Path]) -> Sets:
    holdout = Dataset.from_list([{"id": "h", "prompt": "Who?", "answer": "Nobody knows."}])
    return sets_of(load_split(str(tofu_files(2)), "forget01"), holdout)


def test_scores_by_set_and_field(tiny_lm: TinyLM, sets: Sets) -> None:
    task = tiny_lm()
    seen = observe(task, TEMPLATE, sets, [], Progress())
    assert {short: len(rows) for short, rows in seen.answers.items()} == {
        "forget": 20, "retain": 20, "ra": 6, "wf": 6, "holdout": 1,
    }  # fmt: skip
    assert set(seen.paraphrased) == {"forget", "retain"}
    assert {short: len(rows[0]) for short, rows in seen.perturbed.items()} == {
        "forget": 2,
        "retain": 2,
        "ra": 1,
        "wf": 1,
    }
    assert not seen.said
    row = sets["retain"].to_list()[7]
    for found, answer in (
        (seen.answers["retain"][7], row["answer"]),
        (seen.paraphrased["retain"][7], row["paraphrased_answer"]),
        (seen.perturbed["retain"][7][1], row["perturbed_answers"][1]),
    ):
        (alone,) = parity_scores(task, TEMPLATE, [(row["prompt"], answer)])
        assert found is not None
        assert alone is not None
        assert np.allclose(found.log_prob, alone.log_prob, atol=1e-5)


@pytest.mark.parametrize(
    ("metrics", "sets_answered"),
    [
        (["forget_Q_A_ROUGE"], ["forget"]),
        (["ra_Q_A_ROUGE", "ra_Truth_Ratio"], ["ra"]),
        (["model_utility"], ["retain", "ra", "wf"]),
        (["forget_quality", "extraction_strength"], []),
    ],
)
def test_answers_are_generated_where_they_are_read(
    tiny_lm: TinyLM, sets: Sets, metrics: list[str], sets_answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.benchmarks.open_unlearning_observe.parity_scores", lambda task, template, pairs: pairs)
    monkeypatch.setattr(
        "expunge.benchmarks.open_unlearning_observe.parity_generations", lambda task, template, pairs: pairs
    )
    seen = observe(tiny_lm(), TEMPLATE, sets, metrics, Progress())
    assert list(seen.said) == sets_answered
    for short, asked in seen.said.items():
        role = {"ra": "real_authors", "wf": "world_facts"}.get(short, short)
        assert asked == [(row["prompt"], row["answer"]) for row in sets[role].to_list()]


def test_laid_out_leaves_the_model_as_it_is(tiny_lm: TinyLM) -> None:
    task = tiny_lm()
    before = task.encoder
    other = laid_out(task, TEMPLATE)
    assert isinstance(other.encoder, TemplateEncoder)
    assert other.model is task.model
    assert task.encoder is before


def test_groups_are_those_of_sets_that_have_them(sets: Sets) -> None:
    groups = groups_of(sets)
    assert {groups[i] for i in sets["forget"]["id"]} == {"author-001"}
    assert not {*sets["real_authors"]["id"], "h"} & set(groups)


def test_effects(tiny_lm: TinyLM, sets: Sets) -> None:
    task = tiny_lm()
    seen = observe(task, TEMPLATE, sets, [], Progress())
    assert {one.examples for one in effects_of(task, TEMPLATE, sets, seen, False)} == {53}
    with_strength = effects_of(task, TEMPLATE, sets, seen, True)
    assert [one.examples for one in with_strength[-2:]] == [20, 20]
