"""What the models were seen to do, each thing observed once and shared by all audits.

Every log-likelihood audit is a function of the same teacher-forced pass and every generation audit of the same greedy
pass. ``Observations`` runs each distinct (model, prompt, answer) and each (model, prompt) once, however many audits
ask, and keeps everything by example id, so that a missing value never shifts another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, overload

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from expunge.audits.base import Audit, Estimate
from expunge.audits.examples import Examples, Field, Pair, prompt_key
from expunge.audits.intervals import mean_interval
from expunge.audits.running_text import score_text
from expunge.errors import BadInput, BrokenScores, Problem
from expunge.requests.request import DeletionRequest
from expunge.tasks.cost import Cost
from expunge.tasks.encoding import Prompt
from expunge.tasks.kinds import PREDICTORS
from expunge.tasks.predictions import ExampleRow, Predictions
from expunge.tasks.tokens import TokenScores

MODEL_NAME = re.compile(r"unlearned|original|oracle(-\d+)?")
Key = tuple[str, str]


@dataclass
class Counts:
    """How much was asked of one model and how much of it was run.

    Attributes:
        sequences_asked: teacher-forced sequences that audits read, each reading counted.
        sequences_run: sequences put through the model: the distinct ones.
        generations_asked: generations that audits read, each reading counted.
        generations_run: prompts continued: the distinct ones.
        forwards: calls of the model, each over one padded batch.
    """

    sequences_asked: int = 0
    sequences_run: int = 0
    generations_asked: int = 0
    generations_run: int = 0
    forwards: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the counts as plain numbers."""
        return asdict(self)


@dataclass
class _Seen:
    """One distinct model and everything observed about it."""

    model: Any
    before: Cost
    predictions: dict[str, Predictions] = field(default_factory=dict)
    scores: dict[Key, TokenScores] = field(default_factory=dict)
    broken: set[Key] = field(default_factory=set)
    generated: dict[str, tuple[int, str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    gradient_norms: dict[tuple[Key, float], float] = field(default_factory=dict)
    texts: dict[tuple[str, int, int], list[NDArray[np.float64]]] = field(default_factory=dict)
    copies: Cost = field(default_factory=Cost)
    counts: Counts = field(default_factory=Counts)


class Observations:
    """Models, a request and the observations that audits share.

    Args:
        models: "unlearned" is the model under audit; "original", "oracle", "oracle-2", ... are what it is compared
            with. A model given under two names is run once.
        request: what was to be forgotten and kept.
        extra: further example sets by role, such as "real_authors" and "world_facts"; same columns as in the request.
        seed: seeds every resampling and split of the audits.
        max_new_tokens: how far to generate; by default, 1.5 times the tokens of the longest answer to the prompt
            plus 8.
        limits: role -> how many examples of it to use at most; the same ones for every model, drawn by seed and id.

    Raises:
        BadInput: no "unlearned" model, an unknown model name, or anything that ``Examples`` refuses.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        request: DeletionRequest,
        *,
        extra: Mapping[str, Dataset] | None = None,
        seed: int = 0,
        max_new_tokens: int | None = None,
        limits: Mapping[str, int] | None = None,
    ):
        problems = (
            [] if "unlearned" in models else [Problem("models", "has no 'unlearned'", "name the model to audit so")]
        )
        problems += [
            Problem("models", f"'{name}' is not a name", "use unlearned, original, oracle, oracle-2, oracle-3, ...")
            for name in models
            if not MODEL_NAME.fullmatch(name)
        ]
        problems += _different_outcomes(models) + _different_tokens(models)
        if problems:
            raise BadInput(problems)
        self.models: dict[str, Any] = dict(models)
        self.request = request
        self.seed = seed
        self.max_new_tokens = max_new_tokens
        self.examples = Examples(request, extra, limits, seed)
        self._slots: dict[str, _Seen] = {}
        for name, model in self.models.items():
            twin = next((slot for slot in self._slots.values() if slot.model is model), None)
            self._slots[name] = twin or _Seen(model, model.cost.snapshot())

    # ---- what there is -------------------------------------------------------------------------------------------

    @property
    def oracles(self) -> list[str]:
        """Names of the models that never saw the forget set."""
        return [name for name in self.models if name.startswith("oracle")]

    def rows(self, role: str) -> dict[str, dict[str, Any]]:
        """Return the examples of a role by id; empty where the role is absent."""
        return self.examples.rows(role)

    def groups(self, role: str) -> dict[str, str]:
        """Return example id -> group; empty unless every example of the role has one."""
        return self.examples.groups(role)

    def lacks(self, need: str) -> str | None:
        """Say in words what is missing for a need of an audit, or None where it is met."""
        if need in ("retain", "holdout"):
            return None if need in self.examples.roles else f"the request has no {need} set"
        if need == "original":
            return None if "original" in self.models else "the original model was not given"
        if need == "oracle":
            return None if self.oracles else "no oracle (a model that never saw the forget set) was given"
        if need in ("perturbed_answers", "paraphrased_answer"):
            return None if self.examples.pairs("forget", cast(Field, need)) else f"the forget set has no {need}"
        raise ValueError(f"unknown need '{need}'")

    # ---- predictions of classifiers and regressors ----------------------------------------------------------------

    def predictions(self, model: str, role: str) -> Predictions:
        """Return everything that one pass in evaluation mode says about an example set.

        Args:
            model: name of a model with one prediction per example.
            role: example set.

        Raises:
            BrokenScores: some outputs are NaN or infinite.
            KeyError: there is no such set.
        """
        slot = self._slots[model]
        slot.counts.sequences_asked += len(self.examples.dataset(role))
        if role not in slot.predictions:
            slot.predictions[role] = slot.model.observe(slot.model.encode(self.examples.dataset(role)))
            slot.counts.sequences_run += len(slot.predictions[role])
        found = slot.predictions[role]
        if bad := [i for i, fine in zip(found.ids, found.finite, strict=True) if not fine]:
            raise BrokenScores(
                f"model '{model}' gives NaN or infinite outputs for {len(bad)} of {len(found)} examples of '{role}', "
                f"such as {bad[0]}"
            )
        return found

    def items(self, role: str) -> dict[str, Any]:
        """Return example id -> what a model's ``score`` takes: (prompt, answer), or a row of the set."""
        if not self._predicts:
            return {i: pairs[0] for i, pairs in self.examples.pairs(role, "answer").items()}
        if role not in self.examples.roles:
            return {}
        examples = self.examples.dataset(role)
        return {identity: ExampleRow(examples, index) for index, identity in enumerate(examples["id"])}

    @property
    def _predicts(self) -> bool:
        return next(iter(self.models.values())).kind in PREDICTORS

    # ---- teacher-forced scores ------------------------------------------------------------------------------------

    @overload
    def scores(self, model: str, role: str, field: Literal["perturbed_answers"]) -> dict[str, list[TokenScores]]: ...

    @overload
    def scores(
        self, model: str, role: str, field: Literal["answer", "paraphrased_answer", "paraphrased_prompt"] = "answer"
    ) -> dict[str, TokenScores]: ...

    def scores(self, model: str, role: str, field: Field = "answer") -> Any:
        """Return the token scores of a field of an example set under a model.

        Args:
            model: name of the model.
            role: example set; an absent one gives an empty result.
            field: "answer", "paraphrased_answer" (same prompt), "paraphrased_prompt" (same answer) or
                "perturbed_answers" (same prompt, several wrong answers).

        Returns:
            Example id -> scores, a list of them for "perturbed_answers". Examples without the field are absent.

        Raises:
            BrokenScores: some of these scores are NaN or infinite.
        """
        pairs = self.examples.pairs(role, field)
        slot = self._slots[model]
        slot.counts.sequences_asked += sum(map(len, pairs.values()))
        self._score(slot, pairs.values())
        bad = [i for i, row in pairs.items() if slot.broken and any(_key(*pair) in slot.broken for pair in row)]
        if bad:
            raise BrokenScores(
                f"model '{model}' gives NaN or infinite log-probabilities for {len(bad)} of {len(pairs)} examples "
                f"of '{role}' ({field}), such as {bad[0]}"
            )
        found = {i: [slot.scores[_key(*pair)] for pair in row] for i, row in pairs.items()}
        return found if field == "perturbed_answers" else {i: row[0] for i, row in found.items()}

    def pair_scores(self, model: str, pairs: Sequence[Pair]) -> list[TokenScores]:
        """Return the token scores of any (prompt, answer) pairs under a model, in their order.

        Raises:
            BrokenScores: some of these scores are NaN or infinite.
        """
        slot = self._slots[model]
        slot.counts.sequences_asked += len(pairs)
        self._score(slot, [pairs])
        if bad := sum(_key(*pair) in slot.broken for pair in pairs):
            raise BrokenScores(f"model '{model}' gives NaN or infinite scores for {bad} of {len(pairs)} sequences")
        return [slot.scores[_key(*pair)] for pair in pairs]

    def _score(self, slot: _Seen, wanted: Iterable[Sequence[Pair]]) -> None:
        missing = {key: pair for row in wanted for pair in row if (key := _key(*pair)) not in slot.scores}
        if not missing:
            return
        for key, scores in zip(missing, slot.model.score(list(missing.values())), strict=True):
            slot.scores[key] = scores
            if not (len(scores) and _finite(scores)):
                slot.broken.add(key)
        slot.counts.sequences_run += len(missing)

    def gradient_norms(self, model: str, role: str, order: float = 2.0) -> dict[str, float]:
        """Return example id -> norm of the gradient of its answer's NLL (one backward pass per example)."""
        pairs, slot = self.examples.pairs(role, "answer"), self._slots[model]
        missing = {key: row[0] for row in pairs.values() if ((key := _key(*row[0])), order) not in slot.gradient_norms}
        if missing:
            norms = slot.model.gradient_norms(list(missing.values()), order)
            slot.gradient_norms.update({(key, order): float(n) for key, n in zip(missing, norms, strict=True)})
        found = {i: slot.gradient_norms[_key(*row[0]), order] for i, row in pairs.items()}
        bad = [i for i, value in found.items() if not math.isfinite(value)]
        if bad:
            raise BrokenScores(f"model '{model}' gives NaN or infinite gradients for {len(bad)} examples of '{role}'")
        return found

    # ---- generations ----------------------------------------------------------------------------------------------

    def generations(self, model: str, role: str) -> dict[str, str]:
        """Return example id -> greedy answer. Raw text, which has no prompt to continue, is left out."""
        prompts, slot = self.examples.prompts(role), self._slots[model]
        slot.counts.generations_asked += len(prompts)
        self._generate(slot, [(prompt, self._limit(slot, prompt_key(prompt))) for prompt in prompts.values()])
        return {i: slot.generated[prompt_key(prompt)][1] for i, prompt in prompts.items()}

    def generated(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return role -> example id -> model -> greedy answer, for what was generated so far."""
        out: dict[str, dict[str, dict[str, str]]] = {}
        if self._predicts:
            for name, slot in self._slots.items():
                for role, predicted in slot.predictions.items():
                    for identity, said in predicted.in_words().items():
                        out.setdefault(role, {}).setdefault(identity, {})[name] = said
            return out
        for role in self.examples.roles:
            for identity, prompt in self.examples.prompts(role).items():
                for name, slot in self._slots.items():
                    if (found := slot.generated.get(prompt_key(prompt))) is not None:
                        out.setdefault(role, {}).setdefault(identity, {})[name] = found[1]
        return out

    def continuations(self, model: str, pairs: Sequence[Pair]) -> list[str]:
        """Return the greedy answers to any prompts, as long as the answers beside them would need, in their order."""
        slot = self._slots[model]
        slot.counts.generations_asked += len(pairs)
        self._generate(slot, [(prompt, self._room(slot, {answer})) for prompt, answer in pairs])
        return [slot.generated[prompt_key(prompt)][1] for prompt, _ in pairs]

    def _generate(self, slot: _Seen, wanted: Iterable[tuple[Prompt, int]]) -> None:
        missing: dict[str, tuple[Prompt, int]] = {}
        for prompt, limit in wanted:
            key = prompt_key(prompt)
            limit = max(limit, missing[key][1]) if key in missing else limit
            if key not in slot.generated or slot.generated[key][0] < limit:
                missing[key] = (prompt, limit)
        if not missing:
            return
        texts = slot.model.generate(
            [prompt for prompt, _ in missing.values()], [limit for _, limit in missing.values()]
        )
        for (key, (_, limit)), text in zip(missing.items(), texts, strict=True):
            slot.generated[key] = (limit, text)
        slot.counts.generations_run += len(missing)

    def _limit(self, slot: _Seen, key: str) -> int:
        """Return how many new tokens the longest answer to a prompt needs, whichever example sets it is in."""
        return self._room(slot, self.examples.answers_to(key))

    def _room(self, slot: _Seen, answers: Iterable[str]) -> int:
        if self.max_new_tokens:
            return self.max_new_tokens
        wanted = list(answers)
        for answer in wanted:
            if answer not in slot.lengths:
                slot.lengths[answer] = slot.model.count_tokens(answer)
        return max(math.ceil(1.5 * slot.lengths[answer]) + 8 for answer in wanted)

    # ---- running text ----------------------------------------------------------------------------------------------

    def text_scores(self, model: str, text: str, window: int, stride: int) -> list[NDArray[np.float64]]:
        """Return the log-probabilities of a text's tokens, each scored once.

        Every token has at least ``window - stride`` tokens before it where the text has them.

        Args:
            model: name of the model.
            text: any text.
            window: tokens per forward pass.
            stride: tokens by which windows advance, at most ``window``.

        Returns:
            Per window the log-probabilities in nats of the tokens that no earlier window scored. The first token of
            all has none unless the tokenizer has a beginning-of-sequence token.

        Raises:
            BrokenScores: some of them are NaN or infinite.
        """
        slot = self._slots[model]
        key = (text, window, stride)
        if key not in slot.texts:
            slot.texts[key] = score_text(slot.model, text, window, stride)
        if not all(np.isfinite(row).all() for row in slot.texts[key]):
            raise BrokenScores(f"model '{model}' gives NaN or infinite log-probabilities for running text")
        return slot.texts[key]

    # ---- all at once ----------------------------------------------------------------------------------------------

    def prefetch_scores(self, audits: Sequence[Audit], model: str) -> None:
        """Run everything that these audits will read from a model's teacher-forced pass, in one call."""
        reads = dict.fromkeys(read for audit in audits for read in audit.reading(self))
        if self._predicts:
            for role in dict.fromkeys(role for role, _ in reads if role in self.examples.roles):
                self.predictions(model, role)
            return
        wanted = [row for role, name in reads for row in self.examples.pairs(role, cast(Field, name)).values()]
        self._score(self._slots[model], [*wanted, *(audit.asks(self) for audit in audits)])

    def prefetch_generations(self, audits: Sequence[Audit], model: str) -> None:
        """Generate everything that these audits will read from a model, in one call."""
        roles, slot = dict.fromkeys(role for audit in audits for role in audit.generates), self._slots[model]
        prompts = [prompt for role in roles for prompt in self.examples.prompts(role).values()]
        self._generate(slot, [(prompt, self._limit(slot, prompt_key(prompt))) for prompt in prompts])

    def prefetch(self, audits: Sequence[Audit]) -> None:
        """Run everything that these audits declare: one scoring and one generating call per distinct model."""
        for model in self.models:
            self.prefetch_scores(audits, model)
            self.prefetch_generations(audits, model)

    # ---- accounts and summaries -----------------------------------------------------------------------------------

    def mean(self, role: str, values: Mapping[str, float], bounds: tuple[float, float] | None = None) -> Estimate:
        """Average per-example values of a role with a bootstrap interval that resamples groups where there are any.

        Args:
            role: the example set.
            values: example id -> value.
            bounds: see ``mean_interval``.
        """
        if not values:
            return Estimate(None, note=f"no examples in '{role}'")
        groups = self.groups(role)
        return mean_interval(
            np.fromiter(values.values(), float),
            [groups[i] for i in values] if groups else None,
            seed=self.seed,
            bounds=bounds,
        )

    def counts(self) -> dict[str, Counts]:
        """Return per distinct model, under its first name, what was asked and what was run."""
        for slot in self._slots.values():
            slot.counts.forwards = (slot.model.cost - slot.before).forwards
        return {name: slot.counts for name, slot in self._distinct().items()}

    def cost(self) -> dict[str, Cost]:
        """Return per distinct model, under its first name, what observing it and its copies has cost so far."""
        return {name: slot.model.cost - slot.before + slot.copies for name, slot in self._distinct().items()}

    def spend(self, model: str, cost: Cost) -> None:
        """Add what an audit spent on copies of a model to the model's account."""
        self._slots[model].copies += cost

    def _distinct(self) -> dict[str, _Seen]:
        first: dict[int, tuple[str, _Seen]] = {}
        for name, slot in self._slots.items():
            first.setdefault(id(slot), (name, slot))
        return dict(first.values())


def _different_outcomes(models: Mapping[str, Any]) -> list[Problem]:
    """Find models that predict something else than the others: their losses could not be compared."""
    outcomes = {name: getattr(model, "outcome", None) for name, model in models.items()}
    first = outcomes.get("unlearned")
    return [
        Problem(f"model '{name}'", "predicts other classes, or numbers on another scale, than the one under audit",
                "give models that were made for the same data")
        for name, outcome in outcomes.items()
        if outcome != first
    ]  # fmt: skip


def _different_tokens(models: Mapping[str, Any]) -> list[Problem]:
    """Find models that cut texts into other tokens than the one under audit: losses per token are not comparable."""
    # Only what is a tokenizer of its own: wrapped models pass on whatever they are asked for.
    own_of = {name: getattr(model, "__dict__", {}).get("tokenizer") for name, model in models.items()}
    first = own_of.get("unlearned")
    problems = []
    for name, own in own_of.items():
        if first is None or own is None or own is first or own.get_vocab() == first.get_vocab():
            continue
        what = "has another tokenizer than the one under audit, so that losses per token cannot be compared"
        problems.append(Problem(f"model '{name}'", what, "give a model with the same tokenizer"))
    return problems


def _key(prompt: Prompt, answer: str) -> Key:
    return prompt_key(prompt), answer


def _finite(scores: TokenScores) -> bool:
    return bool(
        np.isfinite(scores.log_prob).all()
        and np.isfinite(scores.mean_log_prob).all()
        and np.isfinite(scores.var_log_prob).all()
    )
