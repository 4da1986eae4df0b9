"""GCG: is there a suffix of ordinary tokens that makes the model say what it should have forgotten?

Greedy coordinate gradient: the gradient of the loss with respect to the one-hot tokens of a suffix names promising
replacements; many of them are tried in one batch and the best is kept. One suffix is sought for all questions of one
half of the forget set, and what counts is the other half, asked with the suffix as text. The null is a random suffix.

Per-example statistic for the verdict: ``gcg_nll``, the lowest NLL with the suffix of any budget.

Source: Zou et al. 2023, Universal and Transferable Adversarial Attacks on Aligned Language Models (arXiv:2307.15043).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from expunge.audits.examples import Pair, asked_as, question_of
from expunge.audits.observations import Observations
from expunge.audits.recovery import batches
from expunge.audits.tamperer import Course, Material, Steps, TamperConfig, Tamperer, budgets_from_zero
from expunge.errors import Diverged
from expunge.tasks.encoding import Encoded
from expunge.tasks.intervene import embedding_table, embeddings_at, insert_tokens
from expunge.tasks.tokens import TokenScores

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM


def token_gradient(embedding_gradient: Tensor, table: Tensor) -> Tensor:
    """Return (m, V) the gradient of the loss with respect to the one-hot tokens of a suffix.

    Args:
        embedding_gradient: (m, H) with respect to the suffix's embeddings.
        table: (V, H) embeddings.
    """
    return embedding_gradient @ table.T


def candidates(
    suffix: Tensor, gradient: Tensor, count: int, top: int, allowed: Tensor, luck: np.random.Generator
) -> Tensor:
    """Draw suffixes that differ from the present one in one place.

    Args:
        suffix: (m,) tokens.
        gradient: (m, V) as by ``token_gradient``.
        count: how many.
        top: replacements per place to draw from: those with the lowest gradient.
        allowed: (V,) bool, tokens that may be used.
        luck: where the draws come from.

    Returns:
        (count, m) tokens.
    """
    scores = gradient.masked_fill(~allowed, torch.inf)
    best = scores.topk(min(top, int(allowed.sum())), dim=-1, largest=False).indices
    places = torch.from_numpy(luck.integers(0, len(suffix), count)).to(suffix.device)
    ranks = torch.from_numpy(luck.integers(0, best.shape[1], count)).to(suffix.device)
    made = suffix.repeat(count, 1)
    made[torch.arange(count, device=suffix.device), places] = best[places, ranks]
    return made


class GCG(Tamperer):
    """Recovery of each model under a searched suffix."""

    id = "gcg"
    title = "Is there a suffix that makes the model say the answers?"
    paper = "Zou et al. 2023, Universal and Transferable Adversarial Attacks on Aligned Language Models"
    default = False
    axis = "search steps"
    label = "GCG"
    held = "gcg_nll"
    shown = "gcg_shown_nll"

    class Config(TamperConfig):
        """Settings of the GCG audit; width, top and tokens as in Zou et al."""

        steps: tuple[int, ...] = Field((0, 10, 50, 250), description="search steps at which to measure")
        tokens: int = Field(20, ge=1, description="length of the suffix")
        width: int = Field(512, ge=1, description="candidates per step")
        top: int = Field(256, ge=1, description="replacements per place to draw from")
        batch_size: int = Field(8, ge=1, description="shown examples per step")
        batched: bool = Field(True, description="try the candidates of a step in one batch instead of one by one")

        @field_validator("steps")
        @classmethod
        def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
            return budgets_from_zero(steps, "steps")

    def budgets(self) -> Sequence[float]:
        return [float(step) for step in self.config.steps]

    def courses(self, seen: Observations) -> list[Course]:
        return [Course("", "searched suffix"), Course("random", "random suffix", null=True, uses_shown=False)]

    def attack(self, victim: CausalLM, material: Material, course: Course, choice: Any) -> Steps:
        victim.model.requires_grad_(False)
        yield 0.0, victim.score
        search = _Search(victim, [material.shown[i] for i in sorted(material.shown)], self.config, material.seed)
        for step in range(1, self.config.steps[-1] + 1):
            if course.null:
                search.suffix = search.random()
            else:
                search.step()
            if step in self.config.steps:
                text = search.text()
                yield float(step), lambda pairs, text=text: _with_suffix(victim, pairs, text)  # type: ignore[misc]

    def tried(self, material: Material, choice: Any) -> dict[str, Any]:
        keys = ("steps", "tokens", "width", "top", "batch_size")
        return {key: v if isinstance(v := getattr(self.config, key), int) else list(v) for key in keys}


class _Search:
    """The suffix sought on one model."""

    def __init__(self, victim: CausalLM, shown: Sequence[Pair], config: Any, seed: int):
        self.victim, self.config = victim, config
        self.encoded = victim.encoder.encode(shown)
        self.places = victim.encoder.after_question(shown)
        self.table = embedding_table(victim.model).float()
        self.allowed = _readable(victim, len(self.table)).to(self.table.device)
        self.luck = np.random.default_rng(seed)
        names = [str(k) for k in range(len(shown))]
        self.order = batches(names, min(config.batch_size, len(shown)), seed)
        self.suffix = self.random()

    def random(self) -> Tensor:
        """Return a suffix of readable tokens that survives being written and read."""
        usable = torch.nonzero(self.allowed)[:, 0]
        drawn = self.suffix if hasattr(self, "suffix") else usable[:1]
        for _ in range(100):
            drawn = usable[torch.from_numpy(self.luck.integers(0, len(usable), self.config.tokens)).to(usable.device)]
            if self._survives(drawn[None])[0]:
                break
        return drawn

    def text(self) -> str:
        """Return the suffix as text."""
        return str(self.victim.tokenizer.decode(self.suffix.tolist()))

    def step(self) -> None:
        """Replace one token by the best of many candidates, or keep the suffix where none is better."""
        drawn = [int(name) for name in next(self.order)]
        gradient = self.gradient(drawn)
        made = candidates(self.suffix, gradient, self.config.width, self.config.top, self.allowed, self.luck).unique(
            dim=0
        )
        made = made[self._survives(made)]
        tried = torch.cat([self.suffix[None], made])
        losses = self.losses(tried, drawn)
        if not np.isfinite(losses).all():
            raise Diverged("a suffix gives a loss that is NaN or infinite")
        self.suffix = tried[int(np.argmin(losses))]

    def gradient(self, drawn: Sequence[int]) -> Tensor:
        """Return (m, V) the gradient of the mean answer NLL of some examples."""
        part = insert_tokens(self.encoded.take(drawn), [self.places[k] for k in drawn], self.suffix.tolist())
        at = torch.tensor([self.places[k] for k in drawn], device=self.table.device)
        vectors = self.table[self.suffix].clone().requires_grad_(True)
        with torch.enable_grad(), embeddings_at(self.victim.model, at, vectors):
            loss = self.victim.statistics(part).mean_nll.mean()
        (found,) = torch.autograd.grad(loss, [vectors])
        return token_gradient(found, self.table)

    def losses(self, suffixes: Tensor, drawn: Sequence[int]) -> np.ndarray:
        """Return (C,) the mean answer NLL of some examples under each of (C, m) suffixes."""
        places = [self.places[k] for k in drawn]
        parts = [insert_tokens(self.encoded.take(drawn), places, row) for row in suffixes.tolist()]
        if not self.config.batched:
            return np.array([self._mean([part])[0] for part in parts])
        return self._mean(parts)

    def _mean(self, parts: Sequence[Encoded]) -> np.ndarray:
        size = len(parts[0])
        ids = [i for part in parts for i in part.ids]
        joined = Encoded(ids, [t for part in parts for t in part.tokens], [s for part in parts for s in part.starts])
        scores = self.victim.score_encoded(joined, [""] * len(joined))
        return np.array([s.nll for s in scores]).reshape(-1, size).mean(1)

    def _survives(self, suffixes: Tensor) -> Tensor:
        """Return (C,) bool: written as text and read again, the suffix has the same tokens."""
        rows = suffixes.tolist()
        texts = self.victim.tokenizer.batch_decode(rows)
        again = self.victim.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return torch.tensor([a == b for a, b in zip(again, rows, strict=True)], device=suffixes.device)


def _readable(victim: CausalLM, size: int) -> Tensor:
    """Return (V,) bool: tokens of printable ASCII that are not special."""
    tokenizer, special = victim.tokenizer, set(victim.tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[k] for k in range(min(size, len(tokenizer)))])
    fine = [t.isascii() and t.isprintable() and t != "" and k not in special for k, t in enumerate(texts)]
    return torch.tensor([*fine, *[False] * (size - len(fine))])


def _with_suffix(victim: CausalLM, pairs: Sequence[Pair], suffix: str) -> list[TokenScores]:
    return victim.score([(asked_as(prompt, question_of(prompt) + suffix), answer) for prompt, answer in pairs])
