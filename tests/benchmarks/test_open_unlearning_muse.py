"""MUSE's metrics: theirs by a loop written out here, ours by our own functions, and what follows from both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from expunge.audits.language.rouge import rouge_l
from expunge.audits.roc import auc
from expunge.benchmarks.muse_data import Corpus, write_corpus
from expunge.benchmarks.muse_scores import knowledge, membership, verbatim
from expunge.benchmarks.open_unlearning import Asked, compare_run
from expunge.benchmarks.open_unlearning_conclusions import MuseSides, muse_conclusions
from expunge.benchmarks.open_unlearning_metrics import told_apart
from expunge.benchmarks.open_unlearning_muse import (
    MUSE_KNOWN,
    estimate,
    observe_ours,
    observe_theirs,
    our_metrics,
    their_metrics,
)
from expunge.benchmarks.open_unlearning_text import Template
from expunge.errors import BadInput
from expunge.runs.progress import Progress
from expunge.tasks.causal_lm import CausalLM

TEMPLATE = Template()
PRIVATE = [f"Mirela walked to harbour {k} and sold {k + 3} clocks." for k in range(6)]
UNSEEN = [f"Tomas stayed on hill {k} and bought {k * 2} lamps." for k in range(7)]
CORPUS = Corpus(
    forget=PRIVATE, retain1=["It rained in Velburg."], retain2=["It snowed."], holdout=UNSEEN,
    verbmem=[("Mirela walked to", f"harbour {k} and sold clocks.") for k in range(5)],
    forget_qa=[(f"Who walked to harbour {k}?", "Mirela did") for k in range(3)],
    retain_qa=[(f"What fell on day {k}?", "Snow") for k in range(4)],
    forget_icl=[("Who sang?", "Anna")], private=(PRIVATE, UNSEEN),
)  # fmt: skip


@pytest.fixture(scope="module")
def task(tiny_lm: Callable[..., CausalLM]) -> CausalLM:
    return tiny_lm()


@pytest.fixture(scope="module")
def other(tiny_lm: Callable[..., CausalLM]) -> CausalLM:
    return tiny_lm(1)


def losses(task: CausalLM, text: str) -> list[float]:
    """NLL of every token but the first, from one plain forward pass."""
    ids = torch.tensor([task.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logits = task.model(input_ids=ids).logits[0].double()
    return [-float(logits[t - 1].log_softmax(-1)[ids[0, t]]) for t in range(1, ids.shape[1])]


def test_theirs_of_running_text(task: CausalLM, other: CausalLM) -> None:
    seen = [observe_theirs(one, TEMPLATE, CORPUS, MUSE_KNOWN, Progress()) for one in (task, other)]
    found = their_metrics(seen[0], None, seen[1])
    sides = [[losses(task, text) for text in texts] for texts in CORPUS.private]
    others = [[losses(other, text) for text in texts] for texts in CORPUS.private]
    labels = [0] * len(PRIVATE) + [1] * len(UNSEEN)

    def area(values: list[float]) -> float:
        return float(roc_auc_score(labels, values))

    flat, flat_others = [row for side in sides for row in side], [row for side in others for row in side]
    assert found["mia_loss"]["agg_value"] == pytest.approx(area([np.mean(row) for row in flat]))
    lowest = [float(np.mean(sorted(row[:-1])[-max(1, int(0.4 * (len(row) - 1))) :])) for row in flat]
    assert found["mia_min_k"]["agg_value"] == pytest.approx(area(lowest))
    apart = [float(np.mean(a) - np.mean(b)) for a, b in zip(flat, flat_others, strict=True)]
    assert found["mia_reference"]["agg_value"] == pytest.approx(area(apart))
    forget = [entry["score"] for entry in found["mia_reference"]["forget"]["value_by_index"].values()]
    assert forget == pytest.approx(apart[: len(PRIVATE)], rel=1e-3, abs=1e-5)
    assert found["privleak"]["agg_value"] == pytest.approx(100 * (0.5 - area(lowest)) / (0.5 + 1e-10))
    # What is recited is scored behind its beginning, without the last label.
    begun, goes_on = CORPUS.verbmem[2]
    start = len(task.tokenizer(begun)["input_ids"])
    ids = task.tokenizer(f"{begun} {goes_on}")["input_ids"]
    with torch.no_grad():
        guesses = task.model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
    right = [guesses[t - 1] == ids[t] for t in range(start, len(ids) - 1)]
    assert found["exact_memorization"]["value_by_index"]["2"]["score"] == pytest.approx(np.mean(right))


def test_theirs_of_what_is_said_is_stemmed_and_cut(task: CausalLM) -> None:
    seen = observe_theirs(task, TEMPLATE, CORPUS, ["forget_knowmem_ROUGE", "forget_verbmem_ROUGE"], Progress())
    assert not seen.answers
    asked, recited = seen.said["forget_knowmem_ROUGE"], seen.said["forget_verbmem_ROUGE"]
    assert not any(stop in one.generation for one in asked for stop in ("\n\n", "Question:"))
    # The whole conversation but the prompt, and what goes on behind the beginning.
    assert [one.truth for one in asked] == ["Mirela did"] * 3
    assert [one.truth for one in recited] == [goes_on for _, goes_on in CORPUS.verbmem]
    metric = their_metrics(seen)["forget_verbmem_ROUGE"]
    assert metric["agg_value"] == pytest.approx(np.mean([rouge_l(s.generation, s.truth).f1 for s in recited]))


def test_ours_are_those_of_the_bench(task: CausalLM, other: CausalLM) -> None:
    mine, reference = (observe_ours(one, CORPUS, MUSE_KNOWN, Progress()) for one in (task, other))
    found = our_metrics(mine, reference)
    known = knowledge(task, CORPUS.forget_qa, CORPUS.forget_icl).score
    assert 100 * found["forget_knowmem_ROUGE"]["agg_value"] == pytest.approx(known)
    assert 100 * found["forget_verbmem_ROUGE"]["agg_value"] == pytest.approx(verbatim(task, CORPUS.verbmem).score)
    assert found["mia_min_k"]["agg_value"] == pytest.approx(membership(task, *CORPUS.private).auc)
    norms = [task.gradient_norms([("", text) for text in side]) for side in CORPUS.private]
    assert found["mia_gradnorm"]["agg_value"] == pytest.approx(auc(-norms[0], -norms[1]))
    assert set(found) == set(MUSE_KNOWN) - {"privleak"}
    assert estimate("mia_min_k", found["mia_min_k"]).value == pytest.approx(found["mia_min_k"]["agg_value"])


def test_ours_puts_no_text_into_a_chat(tiny_lm: Callable[..., CausalLM]) -> None:
    chat = tiny_lm(chat=True)
    plain = CausalLM(chat.model, chat.tokenizer, chat="never")
    found = observe_ours(chat, CORPUS, ["extraction_strength"], Progress()).seen.answers["verbmem"]
    expected = plain.score(CORPUS.verbmem)
    assert [one.nll for one in found if one] == pytest.approx([one.nll for one in expected])


def test_questions_are_put_to_both_sides() -> None:
    def average(*values: float) -> dict[str, Any]:
        return {
            "agg_value": float(np.mean(values)),
            "value_by_index": {str(k): {"score": v} for k, v in enumerate(values)},
        }

    high, low = average(*np.linspace(0.8, 0.9, 20)), average(*np.linspace(0.1, 0.2, 20))
    gone, there = told_apart([5.0] * 20, [1.0] * 20), told_apart([*range(20)], [x + 0.5 for x in range(20)])
    theirs = {"forget_verbmem_ROUGE": high, "mia_min_k": gone, "privleak": {"agg_value": 90.0}}
    ours = {"forget_verbmem_ROUGE": low, "mia_min_k": there}
    kept = {"forget_verbmem_ROUGE": low, "mia_min_k": there}
    found = {c.metric: c for c in muse_conclusions(MuseSides(theirs, kept, ours, kept), estimate)}
    assert (found["forget_verbmem_ROUGE"].theirs.word, found["forget_verbmem_ROUGE"].ours.word) == (
        "above",
        "no difference shown",
    )
    assert (found["mia_min_k"].theirs.word, found["mia_min_k"].ours.word) == ("yes, pushed away", "not shown")
    assert (found["privleak"].theirs.word, found["privleak"].ours.word) == ("over-unlearned", "no difference shown")
    alone = {c.metric: c for c in muse_conclusions(MuseSides(theirs, None, ours, None), estimate)}
    assert set(alone) == {"mia_min_k", "privleak"}
    assert alone["privleak"].ours.word == "no number"
    # A retained model that tells all apart leaves ours without a number.
    clear = told_apart([1.0] * 20, [5.0] * 20)
    sides = MuseSides(theirs, {**kept, "mia_min_k": clear}, ours, {**kept, "mia_min_k": clear})
    (leak,) = (c for c in muse_conclusions(sides, estimate) if c.metric == "privleak")
    assert leak.ours.word == "no number"
    assert "AUC is 1" in leak.ours.shown


@pytest.fixture
def made(task: CausalLM, other: CausalLM, tmp_path: Path) -> dict[str, Any]:
    write_corpus(CORPUS, tmp_path / "muse", {})
    for name, one in (("model", task), ("retained", other)):
        one.model.save_pretrained(tmp_path / name)
        one.tokenizer.save_pretrained(tmp_path / name)
    config = {"mode": "eval", "data_split": "News", "model": {"template_args": dataclasses.asdict(TEMPLATE)},
              "eval": {"muse": {"data_split": "${data_split}"}}}  # fmt: skip
    return {"folder": tmp_path, "data": str(tmp_path / "muse"), "config": config}


def test_a_run_with_its_results(made: dict[str, Any], task: CausalLM, peer_run: Callable[..., Path]) -> None:
    logged = their_metrics(observe_theirs(task, TEMPLATE, CORPUS, MUSE_KNOWN, Progress()))
    run = peer_run("muse", logged, made["config"], suite="MUSE")
    asked = Asked(run, made["folder"] / "retained", str(made["folder"] / "model"), data=made["data"])
    found = compare_run(asked)
    rows = {row.metric: row for row in found.rows}
    assert set(rows) == set(MUSE_KNOWN)
    for name, metric in logged.items():
        if name != "privleak":  # logged without a retained model
            assert rows[name].recomputed == pytest.approx(metric["agg_value"], rel=1e-5), name
    assert all(row.ours.value is not None for row in found.rows if row.metric != "privleak")
    assert {row.metric for row in found.retained_rows} == set(MUSE_KNOWN) - {"privleak", "mia_reference"}
    assert found.facts["examples"]["private"] == [6, 7]
    assert {one.metric for one in found.conclusions} == set(MUSE_KNOWN)
    assert json.dumps(found.to_dict(), allow_nan=False)
    # Gradients are taken where they were logged or asked for, and a reference model has to be there.
    bare = compare_run(Asked(None, None, str(made["folder"] / "model"), split="books", data=made["data"]))
    assert {row.metric for row in bare.rows} == set(MUSE_KNOWN) - {"mia_gradnorm", "mia_reference"}
    (row,) = compare_run(dataclasses.replace(asked, metrics=("mia_gradnorm",))).rows
    assert row.recomputed is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": "novels"}, "'novels' is no corpus of MUSE"),
        ({"holdout": "x.jsonl"}, "MUSE has texts that were never seen"),
        ({"original": "x"}, "--original: is for the verdict"),
        ({"metrics": ("forget_quality",)}, "not recomputed here for MUSE"),
        ({"metrics": ("mia_reference",)}, "needs the weights"),
        ({"data": "nowhere"}, "holds no raw"),
    ],
)
def test_mistakes(made: dict[str, Any], peer_run: Callable[..., Path], change: dict[str, Any], says: str) -> None:
    run = peer_run("muse", {"privleak": {"agg_value": 1.0}}, made["config"], suite="MUSE")
    with pytest.raises(BadInput, match=says):
        compare_run(Asked(**{"run": run, "model": str(made["folder"] / "model"), "data": made["data"], **change}))


def test_results_of_other_files_and_of_the_other_suite(made: dict[str, Any], peer_run: Callable[..., Path]) -> None:
    few = {"forget_verbmem_ROUGE": {"agg_value": 1.0, "value_by_index": {"0": {"rougeL_f1": 1.0}}}}
    run, model = peer_run("few", few, made["config"], suite="MUSE"), str(made["folder"] / "model")
    with pytest.raises(BadInput, match="has 1 rows, and the split has 5"):
        compare_run(Asked(run, model=model, data=made["data"]))
    tofu = peer_run("tofu", {"forget_quality": {"agg_value": 0.5}})
    with pytest.raises(BadInput, match="is of TOFU, and the first is of MUSE"):
        compare_run(Asked(run, tofu, model, data=made["data"]))
