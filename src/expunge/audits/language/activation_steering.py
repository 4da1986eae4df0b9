"""Activation steering: does pushing the hidden states towards a name bring back what was known about it?

The direction of a question is what its last token's block output has beyond that of the same question about other
people (anonymised steering). It is added from there on, more and more strongly. A second direction is the difference
between the means of forget and retain questions; the null is a random direction of the same length.

Per-example statistic for the verdict: ``steered_nll``, the lowest NLL at any strength on the half not shown. The other
half only chooses the block.

Source: Seyitoğlu et al. 2024, Extracting Unlearned Information from LLMs with Activation Steering (arXiv:2411.02631);
difference of means: Arditi et al. 2024, Refusal in Language Models Is Mediated by a Single Direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from expunge.audits.base import Finding
from expunge.audits.examples import Pair, asked_as, question_of
from expunge.audits.names import name_spans
from expunge.audits.observations import Observations
from expunge.audits.tamperer import Course, Material, Steps, TamperConfig, Tamperer, budgets_from_zero
from expunge.tasks.blocks import decoder_blocks
from expunge.tasks.encoding import Prompt, length_batches
from expunge.tasks.intervene import added_to_output
from expunge.tasks.tokens import TokenScores

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Direction = Literal["anonymised", "means"]


def difference(own: Tensor, others: Tensor) -> Tensor:
    """Return (H,) what (H,) a hidden state has beyond the mean of (K, H) others."""
    return own - others.mean(0)


class ActivationSteering(Tamperer):
    """Recovery of each model as its hidden states are pushed towards what a question is about."""

    id = "activation_steering"
    title = "Does steering the activations bring the knowledge back?"
    paper = "Seyitoğlu et al. 2024, Extracting Unlearned Information from LLMs with Activation Steering"
    default = False
    axis = "strength, in lengths of the direction"
    label = "Activation steering"
    held = "steered_nll"

    class Config(TamperConfig):
        """Settings of the steering audit."""

        strengths: tuple[float, ...] = Field((0, 0.5, 1, 2, 4), description="multiples of the direction that is added")
        directions: tuple[Direction, ...] = Field(
            ("anonymised",), min_length=1, description="anonymised (each question against other names) or means"
        )
        layers: tuple[int, ...] | None = Field(
            None,
            description="blocks to choose from on the half shown; at a quarter, half and three quarters if none",
        )
        others: int = Field(8, ge=1, description="other names that a question is asked about")

        @field_validator("strengths")
        @classmethod
        def _ascending(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
            return budgets_from_zero(strengths, "strengths")

    def budgets(self) -> Sequence[float]:
        return [float(s) for s in self.config.strengths]

    def courses(self, seen: Observations) -> list[Course]:
        titles = {"anonymised": "against other names", "means": "difference of means"}
        named = [
            Course("" if d == self.config.directions[0] else d, titles[d], uses_shown=False)
            for d in self.config.directions
        ]
        return [*named, Course("random", "random directions", null=True, uses_shown=False)]

    def run(self, seen: Observations) -> Finding:
        material = self.material(seen)
        if not isinstance(material, str):
            wanted = [question_of(p) for p, _ in (*material.tested.values(), *material.shown.values())]
            if "means" in self.config.directions and not material.retain:
                return Finding(self.id, "no data", note="directions=means needs a retain set")
            if "anonymised" in self.config.directions and not _names(seen, material):
                note = f"no name that the questions are about was found (such as in '{wanted[0][:60]}')"
                return Finding(self.id, "no data", note=f"{note}; give groups, or directions=means")
        return super().run(seen)

    def choose(self, seen: Observations, material: Material) -> dict[str, tuple[int, int]]:
        """Return where each question has its name, the same for every model."""
        return _names(seen, material)

    def attack(self, victim: CausalLM, material: Material, course: Course, choice: Any) -> Steps:
        blocks = decoder_blocks(victim.model)
        layers = self.config.layers
        if layers is None:
            layers = tuple(sorted({len(blocks) * k // 4 for k in (1, 2, 3)}))
        direction = self.config.directions[0] if course.name in ("", "random") else course.name
        steer = {layer: _Steering(self, victim, material, choice, layer, direction, course.null) for layer in layers}
        reached = {
            layer: np.mean([s.nll for s in steer[layer].score(list(material.shown.values()), self.budgets()[1])])
            for layer in layers
        }
        best = steer[min(layers, key=lambda layer: float(reached[layer]))]
        for strength in self.budgets():
            yield strength, lambda pairs, strength=strength: best.score(pairs, strength)  # type: ignore[misc]

    def tried(self, material: Material, choice: Any) -> dict[str, Any]:
        return {
            "strengths": list(self.config.strengths),
            "directions": list(self.config.directions),
            "blocks": "quarter, half, three quarters" if self.config.layers is None else list(self.config.layers),
            "questions with a name": len(choice),
        }


def _names(seen: Observations, material: Material) -> dict[str, tuple[int, int]]:
    """Return question text -> where its name is, over everything that the attack asks."""
    questions: dict[str, str] = {}
    groups: dict[str, str] = {}
    for role, pairs in (
        ("forget", material.tested), ("forget", material.shown), ("holdout", material.control),
        ("retain", material.retain),
    ):  # fmt: skip
        of = seen.groups(role)
        questions |= {i: question_of(prompt) for i, (prompt, _) in pairs.items()}
        groups |= {i: of[i] for i in pairs if i in of}
    return {questions[i]: span for i, span in name_spans(questions, groups).items()}


class _Steering:
    """The directions of one block, worked out once per question."""

    def __init__(
        self,
        audit: ActivationSteering,
        victim: CausalLM,
        material: Material,
        names: Mapping[str, tuple[int, int]],
        layer: int,
        direction: str,
        random: bool,
    ):
        self.victim, self.material, self.names, self.layer = victim, material, names, layer
        self.direction, self.random, self.count = direction, random, int(audit.config.others)
        self.block = decoder_blocks(victim.model)[layer]
        self.known: dict[str, Tensor] = {}

    def score(self, pairs: Sequence[Pair], strength: float) -> list[TokenScores]:
        """Score pairs with their directions added from the last token of the prompt on."""
        vectors = self._vectors([prompt for prompt, _ in pairs])
        encoded = self.victim.encoder.encode(pairs)
        starts = torch.tensor(encoded.starts)

        def around(indices: Sequence[int]) -> Any:
            width = max(encoded.length(i) for i in indices)
            since = torch.arange(width)[None] >= starts[list(indices)][:, None] - 1
            added = since.to(vectors)[:, :, None] * (strength * vectors[list(indices)])[:, None]
            return added_to_output(self.block, added)

        return self.victim.score_encoded(encoded, [answer for _, answer in pairs], around)

    def _vectors(self, prompts: Sequence[Prompt]) -> Tensor:
        texts = [question_of(prompt) for prompt in prompts]
        new = {text: prompt for text, prompt in zip(texts, prompts, strict=True) if text not in self.known}
        if new:
            made = self._anonymised(new) if self.direction == "anonymised" else self._means(new)
            if self.random:
                made = {text: self._drawn(text, vector) for text, vector in made.items()}
            self.known |= made
        return torch.stack([self.known[text] for text in texts])

    def _drawn(self, text: str, like: Tensor) -> Tensor:
        seed = int.from_bytes(text.encode()[-6:], "big") + self.material.seed
        drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)
        return drawn * like.norm() / drawn.norm()

    def _anonymised(self, prompts: Mapping[str, Prompt]) -> dict[str, Tensor]:
        asked: list[Prompt] = []
        counts: dict[str, int] = {}
        pool = sorted({text[slice(*span)] for text, span in self.names.items()})
        rng = np.random.default_rng(self.material.seed)
        pool = [pool[k] for k in rng.permutation(len(pool))]
        for text, prompt in prompts.items():
            if text not in self.names:
                continue
            start, end = self.names[text]
            others = [name for name in pool if name != text[start:end]][: self.count]
            if others:
                counts[text] = len(others)
                asked += [prompt, *(asked_as(prompt, text[:start] + name + text[end:]) for name in others)]
        rows = self._last(asked)
        out, at = {}, 0
        for text, count in counts.items():
            out[text] = difference(rows[at], rows[at + 1 : at + 1 + count])
            at += 1 + count
        # A question whose name was not found is steered as the others are on average.
        typical = torch.stack(list(out.values())).mean(0) if out else torch.zeros(self._width())
        return {text: out.get(text, typical) for text in prompts}

    def _means(self, prompts: Mapping[str, Prompt]) -> dict[str, Tensor]:
        forget = self._last([prompt for prompt, _ in self.material.shown.values()])
        retain = self._last([prompt for prompt, _ in self.material.retain.values()])
        return dict.fromkeys(prompts, difference(forget.mean(0), retain))

    def _width(self) -> int:
        return int(self.victim.model.get_input_embeddings().weight.shape[1])

    def _last(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return (N, H) what the block gives out at the last token of each prompt."""
        if not prompts:
            return torch.zeros(0, self._width())
        encoded = self.victim.encoder.encode([(prompt, "x") for prompt in prompts])
        out = torch.zeros(len(prompts), self._width())
        with self.victim.asked():
            lengths = [encoded.length(i) for i in range(len(encoded))]
            for indices in length_batches(lengths, self.victim.tokens_per_forward):
                part = encoded.take(indices)
                rows = self.victim.hidden_states(part, [self.layer])[self.layer]
                firsts = np.cumsum([0, *(part.labelled(k) for k in range(len(part) - 1))])
                out[list(indices)] = rows[torch.from_numpy(firsts).to(rows.device)].float().cpu()
        return out
