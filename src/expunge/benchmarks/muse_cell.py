"""One cell of the MUSE tables: a method and a seed, through all six criteria; runs in a worker process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from expunge.audits.language.privleak import privleak
from expunge.benchmarks.muse_data import Corpus, load_corpus, text_examples
from expunge.benchmarks.muse_prepare import halves
from expunge.benchmarks.muse_scores import knowledge, membership, verbatim
from expunge.methods.run import METHODS, unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.probe import measure

Checkpoint = Literal["knowmem", "loss"]
UNTOUCHED = ("original", "retrain")
STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)


@dataclass(frozen=True)
class Cell:
    """What to run.

    Attributes:
        folder: receives ``result.json`` and one file per stage, so that a stopped cell goes on.
        where: the corpus.
        method: id of a method, or "original" or "retrain" for a model that is only measured.
        seed: of the method.
        model: the model to start from, or the one to measure.
        oracle: the model to compare with.
        settings: of the method and of training.
        checkpoint: which checkpoint counts on the whole forget set: "knowmem", the first after a whole epoch (or
            strength) whose KnowMem on the forget set is at the oracle's or below, as in the paper; or "loss", the one
            whose loss on the forget set is closest to the oracle's.
        epochs: how many epochs at most.
        folds: whether to run criteria 5 and 6.
        audited: prompts, questions and texts of each kind that are used at most.
    """

    folder: Path
    where: str
    method: str
    seed: int
    model: str
    oracle: str
    settings: Mapping[str, Any]
    checkpoint: Checkpoint
    epochs: int
    folds: bool
    audited: int


@lru_cache(maxsize=2)
def _corpus(where: str) -> Corpus:
    return load_corpus(where)


@lru_cache(maxsize=2)
def _load(path: str) -> CausalLM:
    # The texts of the benchmark are no chat.
    return CausalLM.load(path, chat="never")


@lru_cache(maxsize=4)
def _oracle_numbers(where: str, oracle: str, audited: int) -> dict[str, Any]:
    return six(_load(oracle), _corpus(where), None, audited)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell, or read its result if it is there.

    Returns:
        method, seed, the numbers of criteria 1 to 4 (see ``six``), and under "scal" and "sust" a list of numbers, one
        per fold; also written to ``result.json``.
    """
    import torch

    torch.set_num_threads(1)

    def result() -> dict[str, Any]:
        corpus, reference = _corpus(cell.where), _oracle_numbers(cell.where, cell.oracle, cell.audited)
        if cell.method in UNTOUCHED:
            # Measured again even where the model is the oracle itself: PrivLeak is then 0 by definition.
            found: dict[str, Any] = six(_load(cell.model), corpus, reference["auc"], cell.audited)
        else:
            found = _once(cell.folder / "forget.json", partial(_forget, cell, corpus, reference))
            if cell.folds and corpus.scal:
                found["scal"] = [
                    _once(cell.folder / f"scal-{k}.json", partial(_fold, cell, part, corpus))
                    for k, part in enumerate(corpus.scal, 1)
                ]
            if cell.folds and corpus.sust:
                found["sust"] = _once(cell.folder / "sust.json", partial(_in_turn, cell, corpus))
        return {"method": cell.method, "seed": cell.seed, **found}

    return dict(_once(cell.folder / "result.json", result))


def six(model: CausalLM, corpus: Corpus, oracle_auc: float | None, audited: int) -> dict[str, Any]:
    """Return the numbers of criteria 1 to 4.

    Args:
        model: the model.
        corpus: texts and questions.
        oracle_auc: of Min-40 % under the oracle, for PrivLeak; None for the oracle itself.
        audited: prompts, questions and texts of each kind at most.

    Returns:
        verbmem, knowmem_f, knowmem_r and their shares of empty answers; auc, tpr and privleak; forget_nll.
    """
    verb = verbatim(model, corpus.verbmem[:audited])
    know_f = knowledge(model, corpus.forget_qa[:audited], corpus.forget_icl)
    know_r = knowledge(model, corpus.retain_qa[:audited], corpus.retain_icl)
    members, others = (texts[:audited] for texts in corpus.private)
    private = membership(model, members, others)
    out: dict[str, Any] = {
        "verbmem": verb.score,
        "verbmem_empty": verb.empty,
        "knowmem_f": know_f.score,
        "knowmem_f_empty": know_f.empty,
        "auc": private.auc,
        "tpr": private.tpr,
        "knowmem_r": know_r.score,
        "knowmem_r_empty": know_r.empty,
        "forget_nll": _nll(model, corpus.forget),
    }
    return out | _leak(private.auc, oracle_auc)


def _leak(area: float, oracle_auc: float | None) -> dict[str, Any]:
    if oracle_auc is None:
        return {}
    # Undefined where the oracle tells all forget from all holdout texts; never a number then.
    return {"oracle_auc": oracle_auc, "privleak": privleak(area, oracle_auc) if oracle_auc < 1 else None}


def _nll(model: CausalLM, texts: Sequence[str]) -> float:
    return float(measure(model, {"forget": model.encode(text_examples(texts, model))})["forget"][0])


def _request(model: CausalLM, forget: Sequence[str], corpus: Corpus) -> DeletionRequest:
    gone = text_examples(forget, model)
    ids = set(gone["id"])
    kept = [row for row in text_examples(corpus.retain1, model).to_list() if row["id"] not in ids]
    return DeletionRequest(gone, Dataset.from_list(kept))


def _forget(cell: Cell, corpus: Corpus, reference: Mapping[str, Any]) -> dict[str, Any]:
    if cell.checkpoint == "loss":
        model, steps = _at_equal_loss(cell, _load(cell.model), corpus.forget, corpus)
        return six(model, corpus, reference["auc"], cell.audited) | {"steps": steps, "reached": None}
    request = _request(_load(cell.model), corpus.forget, corpus)
    settings = {**cell.settings, "seed": cell.seed}
    settings.pop("stop", None)
    per_epoch = -(-len(request.forget) // int(settings.get("batch_size", 32)))
    searched = "strength" in METHODS.get(cell.method).Config.model_fields
    tries: Sequence[float] = STRENGTHS if searched else range(1, cell.epochs + 1)
    for size in tries:
        chosen = {k: v for k, v in settings.items() if k not in ("strengths", "retain_rise", "epochs", "max_steps")}
        # Every checkpoint is the beginning of the same run: the learning rate must not depend on how far it goes.
        chosen |= {"epochs": cell.epochs, "schedule": "constant", "warmup": 0.0}
        chosen |= {"strength": size} if searched else {"max_steps": int(size) * per_epoch}
        outcome = unlearn(_load(cell.model), request, cell.method, settings=chosen)
        assert isinstance(outcome.model, CausalLM)
        model = outcome.model
        known = knowledge(model, corpus.forget_qa[: cell.audited], corpus.forget_icl)
        if known.score <= reference["knowmem_f"]:
            break
    numbers = six(model, corpus, reference["auc"], cell.audited)
    return numbers | {"steps": size, "reached": known.score <= reference["knowmem_f"]}


def _at_equal_loss(cell: Cell, start: CausalLM, texts: Sequence[str], corpus: Corpus) -> tuple[CausalLM, int]:
    """Forget some texts up to the oracle's loss on them."""
    outcome = unlearn(
        start, _request(start, texts, corpus), cell.method,
        settings={**cell.settings, "seed": cell.seed}, oracle=_load(cell.oracle),
    )  # fmt: skip
    assert isinstance(outcome.model, CausalLM)
    return outcome.model, outcome.training.kept_step if outcome.training else 0


def _fold(cell: Cell, texts: Sequence[str], corpus: Corpus) -> dict[str, Any]:
    model, steps = _at_equal_loss(cell, _load(cell.model), texts, corpus)
    return _after(model, texts, corpus, cell) | {"steps": steps}


def _in_turn(cell: Cell, corpus: Corpus) -> list[dict[str, Any]]:
    model, out = _load(cell.model), []
    gone: list[str] = []
    for texts in corpus.sust:
        model, steps = _at_equal_loss(cell, model, texts, corpus)
        gone += list(texts)
        out.append(_after(model, gone, corpus, cell) | {"steps": steps})
    return out


def _after(model: CausalLM, gone: Sequence[str], corpus: Corpus, cell: Cell) -> dict[str, Any]:
    """What is kept, and what is left of all texts forgotten so far."""
    kept = knowledge(model, corpus.retain_qa[: cell.audited], corpus.retain_icl)
    left = verbatim(model, [halves(text) for text in gone[: cell.audited]])
    oracle, sides = _load(cell.oracle), (gone[: cell.audited], corpus.private[1][: cell.audited])
    area = membership(model, *sides).auc
    out = {
        "texts": len(gone),
        "knowmem_r": kept.score,
        "knowmem_r_empty": kept.empty,
        "verbmem": left.score,
        "verbmem_empty": left.empty,
        "auc": area,
        "forget_nll": _nll(model, gone),
        "oracle_nll": _nll(oracle, gone),
    }
    return out | _leak(area, membership(oracle, *sides).auc)


def _once(file: Path, make: Callable[[], Any]) -> Any:
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    value = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}")
    scratch.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(scratch, file)
    return value
