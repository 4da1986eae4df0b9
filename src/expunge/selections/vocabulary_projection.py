"""What value vectors say over the vocabulary, computed without ever holding a (vocabulary x vectors) matrix.

The projection of a value vector ``v`` is ``E v`` with ``E`` the output embedding: no final norm, no bias. Its
standardised mean over a set of tokens needs only the mean and covariance of the rows of ``E``, so all vectors of a
model can be searched for a concept at the price of one (width x width) product per vector; the few that stand out are
then projected in full.

Source: Geva et al. 2022, Transformer Feed-Forward Layers Build Predictions by Promoting Concepts in the Vocabulary
Space (arXiv:2203.14680); Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces
(arXiv:2406.11614).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from expunge.errors import BadInput, Problem

# Numbers of a projection that are held at a time: 64 MB in float32.
CHUNK = 1 << 24


@dataclass(frozen=True)
class Head:
    """An output embedding with the two moments of its rows.

    Attributes:
        weight: (V, width) as the model has it.
        mean: (width,) float32.
        covariance: (width, width) float32.
    """

    weight: Tensor
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Head:
        """Compute the moments in chunks of rows."""
        rows, width = weight.shape
        step = max(1, CHUNK // width)
        total = torch.zeros(width, device=weight.device)
        for start in range(0, rows, step):
            total += weight[start : start + step].detach().float().sum(0)
        mean = total / rows
        covariance = torch.zeros(width, width, device=weight.device)
        for start in range(0, rows, step):
            centred = weight[start : start + step].detach().float() - mean
            covariance.addmm_(centred.T, centred)
        return cls(weight.detach(), mean, covariance / rows)


def concept_scores(vectors: Tensor, head: Head, tokens: Tensor) -> Tensor:
    """Say how far a concept's tokens stand out of each vector's projection.

    Args:
        vectors: (n, width) float32.
        head: the output embedding.
        tokens: (S,) int64, the concept's tokens.

    Returns:
        (n,) z-scores: the mean projection on the tokens minus that on the vocabulary, in standard errors of a mean of
        S tokens. Negative where ``-v`` carries the concept; 0 where a vector is zero.
    """
    direction = head.weight[tokens].float().mean(0) - head.mean
    spread = ((vectors @ head.covariance) * vectors).sum(-1).clamp_min(0).sqrt()
    return torch.where(spread > 0, math.sqrt(len(tokens)) * (vectors @ direction) / spread, spread)


def random_mixtures(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Return (count, width) random vectors of a layer: Gaussian mixtures of its own ones, with its second moments.

    They are what a layer would hold if no unit meant anything by itself: the null of ``concept_scores``.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    step = max(1, CHUNK // max(1, len(vectors)))
    for start in range(0, count, step):
        weights = torch.randn(min(step, count - start), len(vectors), generator=generator)
        pieces.append(weights.to(vectors) @ vectors / math.sqrt(len(vectors)))
    return torch.cat(pieces) if pieces else vectors[:0]


def top_tokens(vectors: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k tokens that each vector promotes most.

    Args:
        vectors: (n, width).
        weight: (V, width) output embedding.
        k: how many, at most V.

    Returns:
        (n, k) int64 tokens, strongest first, and (n, k) float32 projections.
    """
    vocabulary, k = weight.shape[0], min(k, weight.shape[0])
    ids = torch.empty(len(vectors), k, dtype=torch.long)
    values = torch.empty(len(vectors), k)
    step = max(1, CHUNK // vocabulary)
    rows = max(1, CHUNK // weight.shape[1])  # of the table, which may have to be turned to float32
    for start in range(0, len(vectors), step):
        some = vectors[start : start + step].float()
        projected = torch.empty(len(some), vocabulary, device=weight.device)
        for first in range(0, vocabulary, rows):
            projected[:, first : first + rows] = some @ weight[first : first + rows].detach().float().T
        best = projected.topk(k, dim=-1)
        ids[start : start + step], values[start : start + step] = best.indices.cpu(), best.values.cpu()
    return ids, values


def enrichment(overlap: int, k: int, tokens: int, vocabulary: int) -> float:
    """Return -log10 of the chance that k tokens drawn from the vocabulary hold as many of the concept's, or more."""
    if overlap == 0:
        return 0.0
    # P(X >= x) as a sum of hypergeometric terms in logs, which do not underflow.
    x = np.arange(overlap, min(k, tokens) + 1)
    logs = _log_choose(tokens, x) + _log_choose(vocabulary - tokens, k - x) - _log_choose(vocabulary, np.array([k]))
    return max(0.0, -float(special.logsumexp(logs)) / math.log(10))


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    valid = (k >= 0) & (k <= n)
    safe = np.where(valid, k, 0)
    logs = special.gammaln(n + 1) - special.gammaln(safe + 1) - special.gammaln(n - safe + 1)
    return np.where(valid, logs, -np.inf)


def jaccard(first: Sequence[object], second: Sequence[object]) -> float:
    """Return |A and B| / |A or B| of two sets given as sequences; 1 where both are empty."""
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) if a | b else 1.0


def distinctive_tokens(
    texts: Sequence[Sequence[int]], background: Sequence[Sequence[int]], level: float = 0.01
) -> list[int]:
    """Return the tokens that a concept's texts use and other texts do not.

    A token counts once per text, so one text that repeats a word makes it no concept's. The chance that as many of the
    concept's texts hold it if all texts were shuffled (hypergeometric) is compared with ``level`` over the number of
    different tokens tried, so that on average at most ``level`` tokens get in by luck.

    Args:
        texts: tokens of each text about the concept.
        background: tokens of each other text.
        level: expected number of tokens that get in by luck.

    Returns:
        The tokens, most distinctive first. Every token of the texts where there is no background.

    Raises:
        BadInput: there is no text, or none has a token.
    """
    inside = _document_counts(texts)
    if not inside:
        raise BadInput(Problem("concept", "its texts have no tokens", "give texts about the concept, or its names"))
    if not background:
        return sorted(inside, key=lambda token: (-inside[token], token))
    outside = _document_counts(background)
    n, total = len(texts), len(texts) + len(background)
    chances = {token: enrichment(count, n, count + outside.get(token, 0), total) for token, count in inside.items()}
    needed = math.log10(len(inside) / level)
    kept = [token for token, found in chances.items() if found > needed]
    return sorted(kept, key=lambda token: (-chances[token], token))


def _document_counts(texts: Sequence[Sequence[int]]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for text in texts:
        for token in set(text):
            counts[int(token)] = counts.get(int(token), 0) + 1
    return counts
