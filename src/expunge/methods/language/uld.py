"""Unlearning from logit difference: train a small assistant to know what is to be forgotten, and subtract it."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from datasets import Dataset
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.alternatives import plain
from expunge.methods.base import MethodConfig, ObjectiveMethod, RemovalLevel, Run, Unlearned
from expunge.methods.strengths import StrengthConfig, check_strengths, search_strength
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.blocks import decoder_blocks, first_blocks
from expunge.tasks.causal_lm import CausalLM, refuse_guarded
from expunge.tasks.combination import Combination
from expunge.tasks.logit_ensemble import LogitEnsemble
from expunge.tasks.statistics import Statistics
from expunge.training.objective import CHUNK, Objective, Stream, Term, nll
from expunge.training.plan import ALTERNATIVE, draw
from expunge.training.settings import StopSettings

log = logging.getLogger(__name__)

# The paper takes 8 of 32 blocks.
SHARE_OF_BLOCKS = 0.25
MOST_RETAIN = 400
PARAPHRASED, PERTURBED = "paraphrased_answer", "perturbed_answers"


class ULDConfig(StrengthConfig):
    """Hyperparameters of ULD; defaults of the paper for TOFU."""

    strength: float = Field(0.75, gt=0, description="how much of the assistant's logits is subtracted (alpha)")
    blocks: PositiveInt | None = Field(
        None, description="blocks of the model, from the first, that the assistant has (K); a quarter of them if None"
    )
    retain_weight: float = Field(6.5, ge=0, description="weight of the uniformity of the assistant on the retain set")
    filter: float = Field(
        1e-2, ge=0, le=1, description="subtract only at tokens this probable, relative to the most probable one"
    )
    min_keep: PositiveInt = Field(
        20,
        description="subtract at least at this many of the most probable tokens, or at the share filter of the "
        "vocabulary if that is more: where an answer is memorised, no other token passes the filter",
    )
    paraphrases: NonNegativeInt = Field(
        2, description=f"other wordings per answer to forget that the assistant learns too (column {PARAPHRASED})"
    )
    perturbed: NonNegativeInt = Field(
        2, description=f"wrong answers per question to forget on which it must be uniform (column {PERTURBED})"
    )
    retain_examples: PositiveInt | None = Field(
        None,
        description=f"retain examples, drawn by their ids; as many as to forget, up to {MOST_RETAIN}, if None",
    )
    parity: bool = Field(
        False,
        description="reproduce the authors' code: uniformity averaged over all B x T positions, padding included, by "
        "the logarithm of a softmax, which underflows; raw logits subtracted; a filter that keeps everything in a "
        "vocabulary of fewer than 1 / filter tokens",
    )


class _UniformKL(torch.autograd.Function):
    """KL from uniform per row with its closed-form gradient ``p - 1 / V``, formed in the forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logits: Tensor) -> Tensor:
        vocabulary, precise = logits.shape[-1], torch.promote_types(logits.dtype, torch.float32)
        divergence, gradient = logits.new_empty(len(logits), dtype=precise), torch.empty_like(logits, dtype=precise)
        step = max(1, CHUNK // vocabulary)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            here = logits[rows].to(precise)
            total = torch.logsumexp(here, dim=-1)
            divergence[rows] = total - here.mean(-1) - math.log(vocabulary)
            torch.sub(here, total[:, None], out=gradient[rows])
            gradient[rows].exp_().sub_(1 / vocabulary)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype  # type: ignore[attr-defined]
        return divergence

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return (gradient * grads[0][:, None]).to(ctx.dtype)  # type: ignore[attr-defined]


def uniform_kl(logits: Tensor, *, parity: bool = False) -> Tensor:
    """KL(uniform || p) per row, ``-log V - (1 / V) sum_v log p_v``, in nats.

    Args:
        logits: (R, V), or (..., V), of the assistant.
        parity: take the logarithm of the softmax, as the authors' code does: infinite, with a gradient that is not a
            number, as soon as one of the V probabilities is too small for the precision (beyond 103 nats in float32).

    Returns:
        (R,) or (...) divergences, 0 where every token is as probable; the gradient is ``p - 1 / V``.
    """
    vocabulary = logits.shape[-1]
    if parity:
        precise = torch.promote_types(logits.dtype, torch.float32)
        return -math.log(vocabulary) - torch.softmax(logits, dim=-1, dtype=precise).log().mean(-1)
    divergence: Tensor = _UniformKL.apply(logits.reshape(-1, vocabulary))
    return divergence.reshape(logits.shape[:-1])


def uld_loss(forget_nll: Tensor, retain_logits: Tensor, retain_weight: float, *, parity: bool = False) -> Tensor:
    """Loss of the assistant, ``mean_t nll_t + w mean_t KL(uniform || p_t)``; a scalar.

    Args:
        forget_nll: (R,) NLL of the tokens of the answers to be forgotten and of their paraphrases.
        retain_logits: (R', V), or (..., V), at positions of retain examples and of wrong answers: every token of them,
            prompt included. The authors' code takes all B x T positions of a padded batch.
        retain_weight: w.
        parity: see ``uniform_kl``.
    """
    return forget_nll.mean() + retain_weight * uniform_kl(retain_logits, parity=parity).mean()


def reworded(examples: Dataset, column: str, most: int) -> list[dict[str, Any]]:
    """Return rows that put the answers of a column behind the examples' questions.

    Args:
        examples: canonical examples.
        column: holds a text or a list of texts.
        most: answers per example, the first ones that differ from its own answer and from each other; fewer where
            there are fewer.

    Returns:
        Rows with ``id`` (``<example id>#<column><number>``), ``prompt``, ``answer`` and, where there are any,
        ``messages``.
    """
    if column not in examples.column_names:
        return []
    asked = [name for name in ("prompt", "messages") if name in examples.column_names]
    rows = []
    for row in examples:
        given = [row[column]] if isinstance(row[column], str) else row[column] or []
        seen = {plain(row["answer"])}
        for text in given:
            if not isinstance(text, str) or not text.strip() or plain(text) in seen or len(seen) > most:
                continue
            seen.add(plain(text))
            number = f"{row['id']}{ALTERNATIVE}{column}{len(seen) - 1}"
            rows.append({"id": number, **{name: row[name] for name in asked}, "answer": text})
    return rows


class Assistant(CausalLM):
    """The first blocks of a model, to be trained; keeps the model that it was made of, and its own adapters."""

    main: CausalLM

    @classmethod
    def of(cls, main: CausalLM, blocks: int, *, shares: bool) -> Assistant:
        """Make an assistant of a model's first blocks.

        Args:
            main: the model.
            blocks: how many.
            shares: whether its weights are the model's own; they may then not be changed.
        """
        cut = first_blocks(main.model, blocks)
        made = cls(cut if shares else copy.deepcopy(cut), main.tokenizer, source=main.source)
        made.encoder, made.main = main.encoder, main
        return made

    def merge_lora(self) -> None:
        """Keep the adapters apart: the weights under them are those of the model."""


class ULD(ObjectiveMethod):
    """L = CE(forget answers) + w KL(uniform || p) on retained text, for an assistant of the model's first K blocks.

    The cross entropy is a mean over answer tokens, of the answers to be forgotten and of paraphrases of them; the
    divergence a mean over all tokens, prompts included, of retain examples and of wrong answers to the questions to be
    forgotten. The model then predicts with ``log p - alpha (log p_assistant + log V)`` at every token that it finds
    plausible by itself: where the assistant knows nothing, that changes nothing. One distribution is scored and
    generated from (``tasks/combination.py``; the authors' code has two).

    The assistant is an adapter over blocks that it shares with the model (``lora``; with ``lora=null`` it has weights
    of its own and all of them train). The model's weights are untouched and still hold the data, and the assistant
    holds it too: this is a guard. Paraphrases and wrong answers are part of the method; where the forget set has no
    such columns it says so and does without. A model that has such an assistant already, of an earlier request, gets
    another beside it.

    The rules of ``stop`` do not watch the assistant, which learns what is to be forgotten: they judge ``strengths``.

    Source: Ji et al. 2024, Reversing the Forget-Retain Objectives, arXiv 2406.08607.
    """

    id = "uld"
    title = "subtract the logits of a small assistant that knows what is to be forgotten and nothing else"
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    removal_level: ClassVar[RemovalLevel] = "guard"
    paper = "Ji et al. 2024, Reversing the Forget-Retain Objectives: Unlearning from Logit Difference, arXiv:2406.08607"
    train_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3, "lora": {"rank": 32, "alpha": 32.0}}
    Config: ClassVar[type[MethodConfig]] = ULDConfig

    def objective(self) -> Objective:
        """What the assistant is trained on."""
        config = self.config
        remember = Term("remember", ("forget",), nll, "token_mean")
        positions: Any = "all" if config.parity else "attended"

        def uniformity(retain: Statistics) -> Tensor:
            return uniform_kl(retain.logits, parity=config.parity)

        uniform = Term("uniform", ("retain",), uniformity, "row_mean", config.retain_weight, positions=positions)
        return Objective((remember, uniform))

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def examples(self, stream: Stream, task: Task, request: DeletionRequest) -> Dataset:
        """Return the examples of a stream with what is added to them."""
        config, forget = self.config, request.forget
        if stream == "forget":
            more = reworded(forget, PARAPHRASED, config.paraphrases)
            return _joined(forget, range(len(forget)), more)
        assert request.retain is not None
        count = config.retain_examples or min(len(forget), MOST_RETAIN)
        ids = request.retain["id"]
        chosen = sorted(range(len(ids)), key=lambda i: (draw("uld", ids[i]), ids[i]))[:count]
        return _joined(request.retain, chosen, reworded(forget, PERTURBED, config.perturbed))

    def start(self, task: Task, run: Run) -> Task:
        """Return the assistant, made of a copy of the model."""
        assert isinstance(task, CausalLM)
        # Weights that train, or are split over processes, must be the assistant's own.
        shares = run.train.lora is not None and run.train.sharding == "none"
        return Assistant.of(task.copy(), self._blocks(task), shares=shares)

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Train an assistant and put it beside a copy of the model.

        Raises:
            BadInput: see ``Method.check``; more blocks than the model has; rules to stop by without strengths to
                judge; or no strength that keeps the retain NLL below the ceiling.
        """
        self.check(task, request)
        self._check_stop(run, request)
        assert isinstance(task, CausalLM)
        rule = self._rule(task)
        self._blocks(task)
        self._say_what_is_missing(request.forget)
        tuning = replace(run, train=run.train.model_copy(update={"stop": StopSettings()}))
        outcome = super().apply(task, request, tuning)
        outcome.train = run.train.model_dump(mode="json")
        assert outcome.training is not None
        assistant = outcome.model
        assert isinstance(assistant, Assistant)
        # Earlier requests that were served in this way have assistants of their own, which stay.
        main, earlier = assistant.main, assistant.main if isinstance(assistant.main, LogitEnsemble) else None
        blocks = len(decoder_blocks(assistant.model)) if run.train.lora is not None else 0
        ensemble = LogitEnsemble(
            main.base,
            [*(earlier.model.others if earlier else ()), assistant.model],
            rule,
            blocks=[*(earlier.blocks if earlier else ()), blocks],
        )
        ensemble.source = f"{self.id} of {task.source}"
        ensemble.model.eval()
        ensemble.model.requires_grad_(True)
        chosen = self.config.strength
        if self.config.strengths:

            def at(strength: float) -> None:
                ensemble.model.rule = replace(rule, weights=(*rule.weights[:-1], -strength))

            search, cost = search_strength(ensemble, at, self.config, request, run)
            chosen = search["chosen"]
            at(chosen)
            outcome.config["search"] = search
            outcome.training.probe_cost += cost
            outcome.cost += cost
        outcome.model = ensemble
        outcome.training.stop_reason += f"; {chosen:g} times the assistant's logits are subtracted"
        return outcome

    def _rule(self, task: CausalLM) -> Combination:
        """Return how the assistant is subtracted, beside those that the model may have already.

        Raises:
            BadInput: the model is behind a guard of another kind, or its assistants are subtracted in another way.
        """
        config = self.config
        vocabulary = len(task.head_weights()["weight"])
        keep = min(vocabulary, max(int(config.filter * vocabulary), config.min_keep))
        rule = Combination((-config.strength,), filter=config.filter, min_keep=keep, parity=config.parity)
        if not isinstance(task, LogitEnsemble):
            refuse_guarded(task)
            return rule
        there: Combination = task.model.rule
        if replace(there, weights=()) != replace(rule, weights=()):
            what = f"has assistants that are subtracted in another way: {there}"
            raise BadInput(Problem(f"model {task.source}", what, "give the same filter, min_keep and parity"))
        return replace(rule, weights=(*there.weights, *rule.weights))

    def _blocks(self, task: CausalLM) -> int:
        """Return how many blocks the assistant has; refuse more than the model has."""
        there = len(decoder_blocks(task.model))
        if self.config.blocks is not None and self.config.blocks > there:
            what = f"is {self.config.blocks}, and the model has {there}"
            raise BadInput(Problem(f"method {self.id}: blocks", what, f"give a number from 1 to {there}"))
        return int(self.config.blocks or max(1, round(SHARE_OF_BLOCKS * there)))

    def _say_what_is_missing(self, forget: Dataset) -> None:
        wanted = {PARAPHRASED: self.config.paraphrases, PERTURBED: self.config.perturbed}
        if missing := [name for name, count in wanted.items() if count and not reworded(forget, name, 1)]:
            log.warning(
                "the forget set has no column %s: the assistant is trained without, which the paper found to forget "
                "less and to keep less",
                " and no column ".join(missing),
            )

    def _check_stop(self, run: Run, request: DeletionRequest) -> None:
        super()._check_stop(run, request)
        check_strengths(self.config, run.train.stop)


def _joined(examples: Dataset, chosen: Sequence[int], more: Sequence[Mapping[str, Any]]) -> Dataset:
    """Return examples that are chosen and further ones as one set of prompts and answers."""
    names = ["id", "prompt", "answer", *(["messages"] if "messages" in examples.column_names else [])]

    def rows() -> Iterator[dict[str, Any]]:
        for row in (*examples.select(list(chosen)), *more):
            yield {name: row.get(name) for name in names}

    return Dataset.from_list(list(rows()))
