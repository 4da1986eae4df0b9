"""What an opened model holds of a concept: its vectors, what damage to them does, how they compare between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from expunge.audits.concepts import Concept
from expunge.audits.examples import Pair
from expunge.selections.localisation import Candidate, Located, attributions, damaged, output_head, replaced
from expunge.selections.vocabulary_projection import Head, jaccard, top_tokens
from expunge.tasks.encoding import Encoded
from expunge.tasks.feed_forward import Place, ValueMatrix, locate_matrix, value_matrices

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Rises = tuple[list[float], list[float]]


def compare_vectors(
    before: Tensor, after: Tensor, head_before: Tensor, head_after: Tensor, k: int
) -> dict[str, list[float]]:
    """Return the paper's intrinsic numbers of vectors at the same places of two models.

    Args:
        before, after: (n, width) float32.
        head_before, head_after: (V, width) output embeddings of the two models.
        k: tokens of a projection that are compared.

    Returns:
        Per vector "jaccard" of the top k tokens (each model's own head), "jaccard_same_head" (the first head for both),
        "cosine", and "l2" as a share of the first vector's length.
    """
    tops = [
        top_tokens(vectors, head, k)[0].tolist()
        for vectors, head in ((before, head_before), (after, head_after), (after, head_before))
    ]
    return {
        "jaccard": [jaccard(a, b) for a, b in zip(tops[0], tops[1], strict=True)],
        "jaccard_same_head": [jaccard(a, b) for a, b in zip(tops[0], tops[2], strict=True)],
        "cosine": torch.cosine_similarity(before, after, dim=-1).tolist(),
        "l2": ((before - after).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)).tolist(),
    }


def best_cosines(vectors: Tensor, places: Sequence[Place], matrices: Sequence[ValueMatrix]) -> list[float]:
    """Return the largest |cosine| of each vector with any of the matrix at its place.

    Units of a layer may be permuted, and turned together with their inputs, without any change in what a model does.
    """
    out = []
    for vector, place in zip(vectors, places, strict=True):
        layer = locate_matrix(matrices, place).vectors.float()
        out.append(float(torch.cosine_similarity(vector[None].to(layer.device), layer).abs().max()))
    return out


@dataclass
class Trace:
    """What was found about one concept in the original model.

    Attributes:
        concept: the concept.
        tokens: its tokens.
        located: the search, or None where the places were given.
        candidates: its vectors.
        target, unrelated: rise of the NLL per question under damage to all of them, in nats per token.
        controls: mean target rise minus mean unrelated rise, for random vectors of the same matrices.
        alone: mean target rise under damage to each vector alone.
        why: why there is no trace, or "".
        remark: what speaks against places that were given, or "".
    """

    concept: Concept
    tokens: tuple[int, ...] = ()
    located: Located | None = None
    candidates: tuple[Candidate, ...] = ()
    target: list[float] = field(default_factory=list)
    unrelated: list[float] = field(default_factory=list)
    controls: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    why: str = ""
    remark: str = ""

    @property
    def places(self) -> list[Place]:
        """Where its vectors are."""
        return [c.place for c in self.candidates]

    @property
    def specific(self) -> float:
        """Mean target rise minus mean unrelated rise, in nats per token."""
        return float(np.mean(self.target) - np.mean(self.unrelated))

    @property
    def p(self) -> float | None:
        """Share of the controls, this one counted, that do as much specific damage; None before validation."""
        if not self.controls:
            return None
        return (1 + sum(c >= self.specific for c in self.controls)) / (1 + len(self.controls))

    def validate(self, model: OpenModel, strength: float, controls: int, significance: float, seed: int) -> None:
        """Damage the vectors together and alone, and random ones of the same matrices; say whether it is specific."""
        self.target, self.unrelated = model.rises(self.concept, self.places, strength, seed)
        alone = [model.rises(self.concept, [place], strength, seed, target_only=True)[0] for place in self.places]
        self.alone = [float(np.mean(rises)) for rises in alone]
        rng = np.random.default_rng([seed, 1])
        for draw in range(controls):
            places = model.random_places(self.places, rng)
            target, unrelated = model.rises(self.concept, places, strength, seed + 1 + draw)
            self.controls.append(float(np.mean(target) - np.mean(unrelated)))
        assert self.p is not None
        if self.p > significance or self.specific <= 0:
            self.why = "damage to its vectors is no more specific than damage to random ones"


@dataclass
class OpenModel:
    """A copy of a model to look into, and what was measured in it.

    Attributes:
        task: the copy.
        matrices: its value vectors.
        head: its output embedding.
        numbers: metric -> concept -> value per vector.
        damage: concept -> strength -> rise of the NLL per question, target and unrelated.
        grafts: concept -> rise of the NLL per target question with the original's vectors at the trace, and with the
            original's vectors at as many random places.
        says: concept -> per vector, the tokens that it promotes most.
        anew: concept -> score of the clearest vector anywhere in the model.
        other: why the places of another model are not in this one, or "".
    """

    task: CausalLM
    matrices: list[ValueMatrix]
    head: Head
    numbers: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    damage: dict[str, dict[float, Rises]] = field(default_factory=dict)
    grafts: dict[str, Rises] = field(default_factory=dict)
    says: dict[str, list[str]] = field(default_factory=dict)
    anew: dict[str, float] = field(default_factory=dict)
    other: str = ""
    _asked: dict[str, tuple[Encoded, list[float]]] = field(default_factory=dict)
    _attributed: dict[tuple[Pair, ...], list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, task: CausalLM, modules: str | None) -> OpenModel:
        """Find the value vectors of a copy.

        Raises:
            UnsupportedModel: none are called as in the known families, or as ``modules`` says.
        """
        return cls(task, value_matrices(task.model, modules), output_head(task))

    def close(self) -> None:
        """Let go of the weights; what was measured stays."""
        del self.task, self.matrices, self.head
        self._asked.clear()
        self._attributed.clear()

    def contrast(self, concept: Concept) -> list[Tensor]:
        """Return per matrix what every vector adds to the concept's answers beyond what it adds to unrelated ones."""
        if concept.unrelated not in self._attributed:
            self._attributed[concept.unrelated] = attributions(self.task, self.matrices, concept.unrelated, self.head)
        other = self._attributed[concept.unrelated]
        mine = attributions(self.task, self.matrices, concept.target, self.head)
        return [a - b for a, b in zip(mine, other, strict=True)]

    def rises(
        self, concept: Concept, places: Sequence[Place], strength: float, seed: int, *, target_only: bool = False
    ) -> Rises:
        """Return the rise of the NLL per question, target and unrelated, while some places are damaged."""
        return self._change(concept, damaged(self.matrices, places, strength, seed), target_only)

    def grafted(self, concept: Concept, vectors: Mapping[Place, Tensor]) -> list[float]:
        """Return the rise of the NLL per target question while other vectors stand at some places."""
        return self._change(concept, replaced(self.matrices, vectors), target_only=True)[0]

    def _change(self, concept: Concept, changed: AbstractContextManager[None], target_only: bool) -> Rises:
        pairs = [*concept.target, *concept.unrelated]
        answers = [answer for _, answer in pairs]
        if concept.name not in self._asked:
            encoded = self.task.encoder.encode(pairs)
            self._asked[concept.name] = encoded, [s.nll for s in self.task.score_encoded(encoded, answers)]
        encoded, base = self._asked[concept.name]
        n = len(concept.target)
        some = list(range(n if target_only else len(pairs)))
        with changed:
            scores = self.task.score_encoded(encoded.take(some), [answers[i] for i in some])
        rises = [s.nll - base[i] for i, s in zip(some, scores, strict=True)]
        return rises[:n], rises[n:]

    def random_places(self, places: Sequence[Place], rng: np.random.Generator) -> list[Place]:
        """Draw as many other units of the same matrices."""
        out: list[Place] = []
        for place in places:
            matrix = locate_matrix(self.matrices, place)
            free = [u for u in range(len(matrix.vectors)) if matrix.place(u) not in {*places, *out}]
            out.append(matrix.place(int(rng.choice(free))) if free else place)
        return out

    def tokens_of(self, vectors: Tensor, count: int) -> list[str]:
        """Return per vector the tokens that it promotes most, as text."""
        ids, _ = top_tokens(vectors, self.head.weight.cpu(), count)
        return [" ".join(self.task.tokenizer.decode([t]).strip() or "␣" for t in row) for row in ids.tolist()]
