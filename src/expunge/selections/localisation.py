"""Concept vectors: the value vectors of a model that name a concept and write its answers.

Two things are asked of every value vector. Does its projection on the vocabulary stand out on the concept's tokens,
more than that of random vectors of the same layer? And, where questions are given, how much does it add to the logits
of their answers, compared with other questions? No judge model is needed; one may be given.

Source: Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces (arXiv:2406.11614). Their
localisation was not released; the paper ranks by the projection and lets a language model judge the token lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.selections.vocabulary_projection import (
    Head,
    concept_scores,
    distinctive_tokens,
    enrichment,
    random_mixtures,
    top_tokens,
)
from expunge.tasks.blocks import decoder_blocks
from expunge.tasks.encoding import Prompt, collate, length_batches
from expunge.tasks.feed_forward import Place, ValueMatrix, locate_matrix

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Pair = tuple[Prompt, str]
# Takes a concept's name and the top tokens of a vector, returns how clearly they name the concept, 0 to 1.
Judge = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class LocateSettings:
    """How value vectors are searched.

    Attributes:
        vectors: how many candidates to keep.
        top_k: tokens of a projection that are looked at; 200 in the paper.
        null_vectors: random vectors per layer.
        level: share of random vectors that may pass as naming the concept.
        shortlist: candidates that are projected in full and shown to the judge, as a multiple of ``vectors``.
        judged_from: rating from which the judge accepts a vector; 0.85 in the paper.
        seed: of the random vectors.
    """

    vectors: int = 16
    top_k: int = 200
    null_vectors: int = 512
    level: float = 0.002
    shortlist: int = 4
    judged_from: float = 0.85
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """A value vector that may carry a concept.

    Attributes:
        place: where it is.
        sign: 1, or -1 where the negated vector carries the concept (activations of gated layers may be negative).
        score: standardised projection on the concept's tokens, positive; see ``concept_scores``.
        null_p: share of random vectors of the layer with a score as large.
        attribution: what it adds to the logits of the concept's answers beyond what it adds to others', per token;
            None without questions.
        overlap: share of its top tokens that are the concept's.
        enrichment: -log10 of the chance of that overlap.
        tokens: its top tokens as text.
        rating: the judge's, or None.
    """

    place: Place
    sign: int
    score: float
    null_p: float
    attribution: float | None
    overlap: float
    enrichment: float
    tokens: tuple[str, ...] = field(repr=False)
    rating: float | None = None


@dataclass(frozen=True)
class Located:
    """What a search found.

    Attributes:
        candidates: best first.
        tokens: the concept's tokens.
        best_score: largest score of any value vector.
        null_best: largest score among the random vectors, of which there were ``null_vectors`` per layer.
        searched: how many value vectors were searched.
        passed: how many stood out of the random vectors at the level asked for.
    """

    candidates: tuple[Candidate, ...]
    tokens: tuple[int, ...]
    best_score: float
    null_best: float
    searched: int
    passed: int


def output_head(task: CausalLM) -> Head:
    """Return the output embedding of a model with its moments."""
    return Head.of(task.model.get_output_embeddings().weight)


def concept_tokens(task: CausalLM, texts: Sequence[str], background: Sequence[str]) -> list[int]:
    """Return the tokens that a concept's texts use and the background does not; see ``distinctive_tokens``.

    Tokens that hold no letter or digit are left out.

    Raises:
        BadInput: the texts have no token of their own.
    """

    def tokens(many: Sequence[str]) -> list[list[int]]:
        # With a space in front, so that a first word is the piece that it is inside a sentence.
        spaced = [f" {text.strip()}" for text in many]
        return list(task.tokenizer(spaced, add_special_tokens=False)["input_ids"]) if many else []

    found = distinctive_tokens(tokens(texts), tokens(background))
    kept = [t for t in found if any(c.isalnum() for c in task.tokenizer.decode([t]))]
    if not kept:
        what = "no token occurs in its texts more than in the others"
        raise BadInput(Problem("concept", what, "give more texts about it, or other background"))
    return kept


def attributions(task: CausalLM, matrices: Sequence[ValueMatrix], pairs: Sequence[Pair], head: Head) -> list[Tensor]:
    """Return what every value vector adds to the logits of the answers, directly, per answer token.

    Of a unit with activation ``a`` and vector ``v`` that is ``a (e_y - e) . v``, with ``e_y`` the output embedding of
    the answer token and ``e`` the mean one. It is read off the gradient of the block's output with respect to the
    weights, so experts, routing weights and norms behind the layer are in it.

    Args:
        task: the model.
        matrices: of that model.
        pairs: (question, answer).
        head: its output embedding.

    Returns:
        Per matrix (units,) float32: the mean over all answer tokens.
    """
    sums = [torch.zeros(len(m.vectors)) for m in matrices]
    if not pairs:
        return sums
    encoded = task.encoder.encode(pairs)
    seen = 0
    with task.asked():
        for indices in length_batches([encoded.length(i) for i in range(len(encoded))], task.tokens_per_forward):
            batch = collate(encoded.take(indices), task.encoder.pad_id, task.device)
            directions = head.weight[batch.targets].float() - head.mean
            with _attributed(task, matrices, batch.rows, directions, sums):
                task.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            task.cost.forwards += 1
            seen += len(batch.rows)
    return [total / seen for total in sums]


@contextmanager
def _attributed(
    task: CausalLM, matrices: Sequence[ValueMatrix], rows: Tensor, directions: Tensor, sums: list[Tensor]
) -> Iterator[None]:
    """While a forward pass runs, run each block once more with gradients to its output matrices alone."""
    weights = dict(task.model.named_parameters())
    handles = []

    def hook_for(members: list[int]) -> Any:
        names = list(dict.fromkeys(matrices[i].parameter for i in members))

        def hook(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            here = [weights[name] for name in names]
            before = [w.requires_grad for w in here]
            try:
                for w in here:
                    w.requires_grad_(True)
                with torch.enable_grad():
                    out = block.forward(*args, **kwargs)
                    hidden = (out[0] if isinstance(out, tuple) else out).reshape(-1, directions.shape[-1])
                    added = (hidden[rows].float() * directions).sum()
                    gradients = dict(zip(names, torch.autograd.grad(added, here, allow_unused=True), strict=True))
            finally:
                for w, was in zip(here, before, strict=True):
                    w.requires_grad_(was)
            for i in members:
                gradient = gradients[matrices[i].parameter]
                if gradient is not None:
                    aligned = matrices[i].oriented(gradient).float()
                    sums[i] += (aligned * matrices[i].vectors.float()).sum(-1).cpu()

        return hook

    for layer, block in enumerate(decoder_blocks(task.model)):
        if members := [i for i, m in enumerate(matrices) if m.layer == layer]:
            handles.append(block.register_forward_hook(hook_for(members), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def locate(
    task: CausalLM,
    matrices: Sequence[ValueMatrix],
    tokens: Sequence[int],
    settings: LocateSettings | None = None,
    *,
    head: Head | None = None,
    asked: Sequence[Tensor] | None = None,
    name: str = "",
    judge: Judge | None = None,
) -> Located:
    """Search all value vectors of a model for a concept.

    Vectors whose projection on the concept's tokens exceeds that of all but a share ``level`` of the random vectors of
    their layer are ranked by what they add to the concept's answers (those that add nothing or take away are dropped),
    or by the projection where no questions were asked.

    Args:
        task: the model.
        matrices: its value vectors.
        tokens: the concept's tokens.
        settings: of the search.
        head: the model's output embedding, if it is at hand.
        asked: per matrix, the attribution of every vector, that to other questions' answers already taken off.
        name: the concept's name, for the judge.
        judge: rates token lists; only vectors that it accepts stay.

    Returns:
        The candidates, and the null that they were compared with.
    """
    settings = settings or LocateSettings()
    head = head or output_head(task)
    wanted = torch.tensor(list(tokens), device=head.weight.device)
    best, null_best, searched, passed = 0.0, 0.0, 0, 0
    rows: list[tuple[float, int, int, float]] = []
    for index, matrix in enumerate(matrices):
        scores = concept_scores(matrix.written(), head, wanted)
        null = _null(matrix, index, head, wanted, settings)
        above = len(null) - torch.searchsorted(null, scores.abs(), right=False)
        p = above.float() / len(null)
        searched += len(scores)
        best, null_best = max(best, float(scores.abs().max())), max(null_best, float(null[-1]))
        standing = (p <= settings.level).nonzero()[:, 0]
        passed += len(standing)
        for unit in standing.tolist():
            added = None if asked is None else float(asked[index][unit])
            if added is None or added > 0:
                rank = abs(float(scores[unit])) if added is None else added
                rows.append((rank, index, unit, float(p[unit])))
    rows.sort(key=lambda row: (-row[0], row[1], row[2]))
    shortlist = rows[: settings.vectors * (settings.shortlist if judge else 1)]
    candidates = [
        describe(task, matrices, matrices[index].place(unit), tokens, head, settings, asked, p)
        for _, index, unit, p in shortlist
    ]
    if judge is not None:
        rated = [(c, float(judge(name, c.tokens))) for c in candidates]
        candidates = [Candidate(**{**vars(c), "rating": r}) for c, r in rated if r >= settings.judged_from]
    return Located(tuple(candidates[: settings.vectors]), tuple(tokens), best, null_best, searched, passed)


def describe(
    task: CausalLM,
    matrices: Sequence[ValueMatrix],
    place: Place,
    tokens: Sequence[int],
    head: Head,
    settings: LocateSettings,
    asked: Sequence[Tensor] | None = None,
    null_p: float | None = None,
) -> Candidate:
    """Say what a value vector is to a concept; see ``locate`` for the arguments.

    Args:
        place: where it is.
        null_p: share of random vectors with a score as large, if it is known already.
    """
    matrix = locate_matrix(matrices, place)
    index = next(i for i, m in enumerate(matrices) if m is matrix)
    vector = matrix.written(torch.tensor([place.dim], device=matrix.vectors.device))
    wanted = torch.tensor(list(tokens), device=head.weight.device)
    score = float(concept_scores(vector, head, wanted))
    if null_p is None:
        null_p = float((_null(matrix, index, head, wanted, settings) >= abs(score)).float().mean())
    sign = 1 if score > 0 else -1
    ids, _ = top_tokens(sign * vector, head.weight, settings.top_k)
    found = [int(t) for t in ids[0]]
    shared = len(set(tokens) & set(found))
    return Candidate(
        place=place,
        sign=sign,
        score=abs(score),
        null_p=null_p,
        attribution=None if asked is None else float(asked[index][place.dim]),
        overlap=shared / len(found),
        enrichment=enrichment(shared, len(found), len(tokens), head.weight.shape[0]),
        tokens=tuple(task.tokenizer.convert_ids_to_tokens(found)),
    )


def _null(matrix: ValueMatrix, index: int, head: Head, wanted: Tensor, settings: LocateSettings) -> Tensor:
    """Return the sorted |scores| of random vectors of a layer."""
    mixtures = random_mixtures(matrix.written(), settings.null_vectors, settings.seed + 7919 * index)
    return concept_scores(mixtures, head, wanted).abs().sort().values


# ---- damage ----------------------------------------------------------------------------------------------------


@contextmanager
def damaged(matrices: Sequence[ValueMatrix], places: Sequence[Place], strength: float, seed: int) -> Iterator[None]:
    """Add noise to value vectors for a while: ``v + c ||v|| / sqrt(d) N(0, I)``, so its length is about ``c ||v||``.

    The paper's noise has standard deviation 0.1 per coordinate whatever the width, several times the length of a vector
    of its models; scaled by the norm, one strength means the same for every model.

    Args:
        matrices: of the model to damage, which is changed in place; afterwards every bit is as before.
        places: which vectors.
        strength: c; 0 leaves everything as it is.
        seed: of the noise.
    """
    kept = damage(matrices, places, strength, seed)
    try:
        yield
    finally:
        restore(matrices, kept)


def damage(
    matrices: Sequence[ValueMatrix], places: Sequence[Place], strength: float, seed: int
) -> Mapping[Place, Tensor]:
    """Add the noise of ``damaged`` for good, and return what was there before."""
    kept = {}
    for place in sorted(set(places)):
        vector = locate_matrix(matrices, place).vectors[place.dim]
        kept[place] = vector.clone()
        rng = np.random.default_rng([seed, place.layer, place.dim])
        noise = torch.from_numpy(rng.standard_normal(len(vector))).to(device=vector.device, dtype=torch.float32)
        with torch.no_grad():
            size = strength * float(vector.float().norm()) / len(vector) ** 0.5
            vector.copy_((vector.float() + size * noise).to(vector.dtype))
    return kept


@contextmanager
def replaced(matrices: Sequence[ValueMatrix], vectors: Mapping[Place, Tensor]) -> Iterator[None]:
    """Put other value vectors in place for a while; afterwards every bit is as before."""
    before = {place: locate_matrix(matrices, place).vectors[place.dim].clone() for place in vectors}
    restore(matrices, vectors)
    try:
        yield
    finally:
        restore(matrices, before)


def restore(matrices: Sequence[ValueMatrix], kept: Mapping[Place, Tensor]) -> None:
    """Put back what ``damage`` returned."""
    with torch.no_grad():
        for place, vector in kept.items():
            locate_matrix(matrices, place).vectors[place.dim].copy_(vector)
