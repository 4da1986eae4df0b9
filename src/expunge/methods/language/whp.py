"""Who's Harry Potter: train the forget text on what a model that never read it would have expected."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.errors import BadInput, Problem, collected
from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.methods.language.anchors import find_anchors, read_anchors, write_anchors
from expunge.methods.language.generic_labels import (
    Aligned,
    Facts,
    align_example,
    openings_of,
    read_labels,
    translated_logits,
    write_labels,
)
from expunge.methods.terms import RetainConfig, RetainLoss
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded, length_batches
from expunge.tasks.examples import EncodedExamples
from expunge.tasks.statistics import IGNORED
from expunge.training.identity import fingerprint
from expunge.training.loop import train
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.settings import StopSettings

log = logging.getLogger(__name__)
Normalisation = Literal["mean", "log_softmax", "none"]
# Below this share of labels that differ from what the model says anyway, there is next to nothing to learn.
FEW_CHANGED = 0.05


class WHPConfig(RetainConfig):
    """Hyperparameters of Who's Harry Potter; defaults of the paper. No retain set is needed."""

    alpha: PositiveFloat = Field(5.0, description="how much of what reinforcement raised is subtracted")
    reinforce_epochs: PositiveInt = Field(3, description="passes over the forget set that make the reinforced model")
    reinforce_learning_rate: PositiveFloat = Field(3e-6, description="peak learning rate of the reinforcement")
    normalise: Normalisation = Field(
        "mean",
        description="what is taken from logits first, so that constants added to all of a row change nothing: their "
        "mean, or log_softmax, whose log-probabilities cannot rise where the text is known by heart; or none",
    )
    anchors: Literal["auto", "none"] = Field(
        "auto", description="find names in the forget set and read generic ones in their place, or do not"
    )
    anchors_file: str | None = Field(
        None, description='JSON file {"term": "replacement"} to use instead; a run writes the one it made to its folder'
    )
    repeats: Literal["original", "mask"] = Field(
        "original", description="label where a name that stands earlier in the text comes again: its own token, or none"
    )
    seen_penalty: float = Field(
        20.0, ge=0, description="what is taken from the logits of generic names that stand for names seen before"
    )
    retain: RetainLoss = Field("none", description="loss on a retain set, if there is one: none, nll, or kl")
    parity: bool = Field(False, description="raw logits as in the paper's formula, and KL over all positions")

    @property
    def normalisation(self) -> Normalisation:
        """What is done to the logits first."""
        return "none" if self.parity else self.normalise


def whp_logits(
    translated: Tensor, baseline: Tensor, reinforced: Tensor, alpha: float, normalise: Normalisation = "mean"
) -> Tensor:
    """Generic prediction ``v_translated - alpha relu(v_reinforced - v_baseline)``.

    Args:
        translated: (R, V) logits of the baseline on the text with generic names; the same as ``baseline`` without any.
        baseline: (R, V) logits of the baseline on the original text.
        reinforced: (R, V) logits of the reinforced model on the original text.
        alpha: how much of what reinforcement raised is subtracted.
        normalise: what is done to each of the logits first, see ``WHPConfig.normalise``.

    Returns:
        (R, V) generic logits.
    """
    if normalise == "mean":
        translated, baseline, reinforced = (z - z.mean(-1, keepdim=True) for z in (translated, baseline, reinforced))
    elif normalise == "log_softmax":
        translated, baseline, reinforced = (z.log_softmax(-1) for z in (translated, baseline, reinforced))
    return translated - alpha * torch.relu(reinforced - baseline)


def whp_labels(generic: Tensor, excluded: Sequence[int] = ()) -> Tensor:
    """(R,) the most probable token of each generic prediction, special tokens left out.

    Args:
        generic: (R, V), see ``whp_logits``.
        excluded: tokens that are never a label.
    """
    if not len(excluded):
        return generic.argmax(-1)
    banned = torch.zeros(generic.shape[-1], dtype=torch.bool, device=generic.device)
    banned[torch.tensor(excluded, device=generic.device)] = True
    return generic.masked_fill(banned, -torch.inf).argmax(-1)


def whp_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(R,) cross entropy of generic labels in nats, 0 at rows labelled -100; their mean is the objective."""
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


class WHP(ObjectiveMethod):
    """L = gamma CE(generic label) + alpha_r L_retain, averaged over the labelled tokens of the step.

    The label of a row is ``argmax_v [ v_base(translated) - alpha relu(v_reinforced(original) - v_base(original)) ]``
    over logits less their mean (``normalise``). The reinforced model is the one given, trained further on the forget
    set; the translated text has generic names in place of those that only the forget set uses. Rows are matched by
    characters. Where a name comes again that stands earlier in the text, the label is its own token (or none), and
    generic names of names that were seen are lowered, or the model would learn never to repeat a name. Inside a name
    and at the end of the text there is no label. Labels are targets of the row itself and are not shifted.

    The generic names that come with Expunge are common English ones: a model that knows no such names predicts nothing
    sensible behind them, and does better with ``anchors=none`` or with a file of names that it does know.

    With a run folder, the stages are kept there: ``reinforced/`` with its checkpoints, ``anchors.json``, which may be
    edited and given as ``anchors_file``, and ``labels.safetensors``; a killed run goes on from the last of them. What
    the labels are is in the outcome's ``config["labels"]``. If hardly any of them differs from what the model predicts
    anyway, there is a warning: reinforcement finds nothing to raise in a text that is known by heart, and more of it
    or a larger alpha helps.

    Source: Eldan and Russinovich 2023, arXiv 2310.02238. MUSE's method of this name is another one, the difference of
    the logits of two models at inference.
    """

    id = "whp"
    title = "train the forget text on what a model that never read it would have expected"
    paper = "Eldan and Russinovich 2023, Who's Harry Potter? Approximate Unlearning in LLMs, arXiv:2310.02238"
    train_defaults: ClassVar[Mapping[str, Any]] = {"epochs": 2, "learning_rate": 1e-6, "batch_size": 128}
    Config: ClassVar[type[MethodConfig]] = WHPConfig

    def objective(self) -> Objective:
        """The cross entropy of the generic labels, and a retain term if asked for."""
        labels = Term("whp", ("forget",), nll, "token_mean", self.config.forget_weight)
        return Objective((labels, *self.config.retain_terms()))

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also a dictionary that cannot be used, and a tokenizer without offsets.

        Raises:
            BadInput: every problem.
        """
        problems: list[Problem] = []
        with collected(problems):
            super().check(task, request)
        if self.config.anchors_file is not None:
            with collected(problems):
                read_anchors(self.config.anchors_file)
        if task.kind in self.tasks and not task.tokenizer.is_fast:  # type: ignore[attr-defined]
            what = "has no character offsets, by which the two texts are matched"
            problems.append(Problem(f"method {self.id}: tokenizer", what, "use its fast version"))
        if problems:
            raise BadInput(problems)

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the examples of a stream, those to be forgotten with generic labels."""
        encoded = super().encode(stream, model, request, run)
        if stream != "forget":
            return encoded
        assert isinstance(model, CausalLM)
        assert isinstance(encoded, Encoded)
        targets, facts = self._labels(model, encoded, request, run)
        run.notes["labels"] = asdict(facts)
        if not facts.generic:
            what = "no row of the forget set can be given a generic label"
            raise BadInput(Problem(f"method {self.id}", what, "give longer texts, or fewer anchors"))
        if facts.changed < FEW_CHANGED:
            log.warning(
                "only %.1f %% of the generic labels differ from what the model predicts anyway: raise "
                "reinforce_epochs, reinforce_learning_rate or alpha",
                100 * facts.changed,
            )
        return replace(encoded, targets=targets)

    def anchors(self, request: DeletionRequest) -> dict[str, str]:
        """The dictionary: the file's, or one made from the forget set without names that the retain set uses."""
        if self.config.anchors_file is not None:
            return read_anchors(self.config.anchors_file)
        if self.config.anchors == "none":
            return {}
        texts = [[f"{r['prompt']} {r['answer']}".strip() for r in s] for s in (request.forget, request.retain or [])]
        return find_anchors(*texts)

    def _labels(
        self, model: CausalLM, encoded: Encoded, request: DeletionRequest, run: Run
    ) -> tuple[list[NDArray[np.int64]], Facts]:
        """Make the labels, or read those that an earlier process of this run has made."""
        anchors = self.anchors(request)
        given = (self.config.model_dump_json(), json.dumps(anchors, sort_keys=True), run.train.model_dump_json())
        file, key = None, ""
        if run.folder is not None:
            file, key = run.folder / "labels.safetensors", fingerprint(model, {"forget": encoded}, *given)
            if (kept := read_labels(file, key, encoded.ids)) is not None:
                return kept
            if _writes():
                run.folder.mkdir(parents=True, exist_ok=True)
                write_anchors(run.folder / "anchors.json", anchors)
        reinforced = self._reinforce(model, encoded, run)
        rows = request.forget.to_list()
        aligned = [align_example(model, row, encoded, i, anchors) for i, row in enumerate(rows)]
        targets, facts = generic_targets(model, reinforced, encoded, aligned, self.config)
        facts.anchors = len(anchors)
        model.cost = model.cost + reinforced.cost
        if file is not None and run.folder is not None and _writes():
            write_labels(file, key, encoded.ids, targets, facts)
            shutil.rmtree(run.folder / "reinforced" / "checkpoints", ignore_errors=True)
        return targets, facts

    def _reinforce(self, model: CausalLM, encoded: Encoded, run: Run) -> CausalLM:
        """Train a copy further on the forget set, by the same loop."""
        settings = run.train.model_copy(
            update={
                "epochs": self.config.reinforce_epochs,
                "learning_rate": self.config.reinforce_learning_rate,
                "max_steps": None,
                "select": None,
                "stop": StopSettings(),
                "trackers": (),
            }
        )
        reinforced = model.copy()
        objective = Objective((Term("forget_nll", ("forget",), nll, "token_mean"),))
        folder = run.folder / "reinforced" if run.folder is not None else None
        train(reinforced, objective, {"forget": encoded}, settings, folder=folder, identity="reinforced")
        return reinforced


def generic_targets(
    base: CausalLM, reinforced: CausalLM, encoded: Encoded, aligned: Sequence[Aligned], config: WHPConfig
) -> tuple[list[NDArray[np.int64]], Facts]:
    """Label every answer row of the examples, in one pass of each model over each text.

    Args:
        base: the model before unlearning.
        reinforced: the same, trained further on the examples.
        encoded: the original texts.
        aligned: the translated ones.
        config: alpha, and the rules on names.

    Returns:
        Per example (T - start,) labels, -100 for none; and what they are.
    """
    special = sorted(set(base.tokenizer.all_special_ids))
    openings = {name: openings_of(base, name) for a in aligned for names in a.seen for name in names}
    targets: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(encoded)
    facts, differ = Facts(), 0
    for batch in length_batches([encoded.length(i) for i in range(len(encoded))], base.tokens_per_forward):
        part = encoded.take(batch)
        with base.asked(), reinforced.asked():
            plain, raised = base.statistics(part).logits, reinforced.statistics(part).logits
            translated = translated_logits(base, plain, [aligned[i] for i in batch])
        generic = whp_logits(translated, plain, raised, config.alpha, config.normalisation)
        seen = [names for i in batch for names in aligned[i].seen]
        for row, names in enumerate(seen):
            if names:
                generic[row, sorted({t for name in names for t in openings[name]})] -= config.seen_penalty
        labels, own = (whp_labels(z, special).cpu().numpy() for z in (generic, plain))
        first = 0
        for i in batch:
            original = encoded.tokens[i][encoded.starts[i] :]
            rows = slice(first, first + len(original))
            first += len(original)
            end = np.zeros(len(original), dtype=bool)
            end[-1] = original[-1] == base.encoder.eos_id
            repeated = aligned[i].repeated & ~end
            usable = (aligned[i].rows >= 0) & ~repeated & ~end
            kept = original if config.repeats == "original" else np.full_like(original, IGNORED)
            targets[i] = np.where(usable, labels[rows], np.where(repeated, kept, IGNORED))
            facts.rows += len(original)
            facts.generic += int(usable.sum())
            facts.repeated += int(repeated.sum())
            facts.masked += int((targets[i] == IGNORED).sum())
            differ += int((labels[rows] != own[rows])[usable].sum())
    facts.changed = differ / max(1, facts.generic)
    return targets, facts


def _writes() -> bool:
    """Whether this process writes files: the only one, or the first of several."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
