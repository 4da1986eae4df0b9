"""The value vectors that carry the concepts to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from expunge.data.concept_vectors import read_concepts
from expunge.errors import BadInput, Problem
from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, Selection, SelectionConfig
from expunge.selections.localisation import LocateSettings, attributions, concept_tokens, locate, output_head
from expunge.tasks.base import Task
from expunge.tasks.encoding import prompt_of
from expunge.tasks.feed_forward import Place, ValueMatrix, locate_matrix, value_matrices

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

UNRELATED = 64  # questions of the retain set whose attribution is taken off


class TraceSettings(BaseModel):
    """Which value vectors count as the trace of the forget set."""

    vectors: int = Field(8, ge=1, description="value vectors per concept at most")
    level: float = Field(
        0.002,
        gt=0,
        le=1,
        description="share of random vectors that may name a concept as clearly; "
        "1 ranks by what is added to the answers alone",
    )
    file: Path | None = Field(None, description="file in the ConceptVectors format that names the vectors instead")
    modules: str | None = Field(
        None, description="name of the feed-forward output matrix within a block, * as wildcard; else known names"
    )


def trace_of(task: CausalLM, request: DeletionRequest, settings: TraceSettings, seed: int) -> dict[str, list[Place]]:
    """Find the value vectors of every concept of a request.

    Args:
        task: the model to look into.
        request: each group of its forget set is a concept (all of it where there are no groups); the retain set gives
            the background.
        settings: of the search.
        seed: of the random vectors and of the draw of unrelated questions.

    Returns:
        Concept -> places, best first; from the file where one is given. Concepts without a vector are left out.

    Raises:
        BadInput: no concept has a vector. The message gives the null.
        UnsupportedModel: no feed-forward output matrix of a known name.
    """
    matrices = value_matrices(task.model, settings.modules)
    if settings.file is not None:
        named = {c.name: [Place(*vector) for vector in c.vectors] for c in read_concepts(settings.file)}
        for concept, places in named.items():
            for place in places:
                locate_matrix(matrices, place, f"{settings.file} ({concept})")
        return named
    assert request.retain is not None
    retain = request.retain.to_list()
    background = [row["answer"] for row in retain]
    drawn = np.random.default_rng(seed).permutation(len(retain))[:UNRELATED]
    head = output_head(task)
    other = attributions(task, matrices, _pairs([retain[k] for k in sorted(drawn)]), head)
    search = LocateSettings(vectors=settings.vectors, level=settings.level, seed=seed)
    found, seen = {}, []
    for concept, rows in _concepts(request.forget.to_list()).items():
        answers = [row["answer"] for row in rows]
        try:
            # Where the projection does not count, it does not matter which tokens are the concept's own.
            tokens = concept_tokens(task, answers, background if settings.level < 1 else ())
        except BadInput:
            seen.append(f"'{concept}' has no tokens that the retain set lacks")
            continue
        asked = [a - b for a, b in zip(attributions(task, matrices, _pairs(rows), head), other, strict=True)]
        result = locate(task, matrices, tokens, search, head=head, asked=asked)
        if result.candidates:
            found[concept] = [candidate.place for candidate in result.candidates]
        else:
            null = f"{result.best_score:.1f}, the clearest random one {result.null_best:.1f}"
            seen.append(f"the clearest vector for '{concept}' scores {null}")
    if not found:
        fix = "raise level (1 ranks by what is added to the answers alone), or name vectors with file"
        raise BadInput(Problem("concept vectors", f"no value vector carries a concept: {'; '.join(seen[:3])}", fix))
    return found


def trace_mask(task: CausalLM, matrices: Sequence[ValueMatrix], places: Sequence[Place]) -> dict[str, Tensor]:
    """Return parameter -> True at the value vectors at some places."""
    parameters = dict(task.named_parameters())
    mask: dict[str, Tensor] = {}
    for place in places:
        matrix = locate_matrix(matrices, place)
        part = mask.setdefault(matrix.parameter, torch.zeros_like(parameters[matrix.parameter], dtype=torch.bool))
        matrix.oriented(part)[place.dim] = True
    return mask


def _concepts(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    grouped = all(row.get("group") not in (None, "") for row in rows)
    out: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: str(row["id"])):
        out.setdefault(str(row["group"]) if grouped else "the forget set", []).append(row)
    return dict(sorted(out.items()))


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, str]]:
    return [(prompt_of(row), row["answer"]) for row in rows]


class ConceptVectorsConfig(SelectionConfig, TraceSettings):
    """Which value vectors."""


class ConceptVectors(Selection):
    """The value vectors that name the concepts of the forget set and write their answers; see ``trace_of``.

    Any objective confined to them is a directed ablation; with gradient ascent it is the second half of Needle.

    Source: Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv 2406.11614.
    """

    id = "concept_vectors"
    title = "value vectors that name the concept and write its answers"
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv:2406.11614"
    Config: ClassVar[type[SelectionConfig]] = ConceptVectorsConfig

    def build(self, task: Task, request: DeletionRequest, seed: int) -> Mask:
        """Search, and mark what was found."""
        model = cast("CausalLM", task)
        settings = TraceSettings(**self.config.model_dump(include=set(TraceSettings.model_fields)))
        found = trace_of(model, request, settings, seed)
        places = [place for places in found.values() for place in places]
        mask = trace_mask(model, value_matrices(model.model, settings.modules), places)
        allowed = self.candidates(task)
        return {name: part for name, part in mask.items() if name in allowed}
