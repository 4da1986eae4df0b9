"""The maths of vocabulary projections, each against a slow and obvious computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.errors import BadInput
from expunge.selections import vocabulary_projection as vp
from expunge.selections.vocabulary_projection import (
    Head,
    concept_scores,
    distinctive_tokens,
    enrichment,
    jaccard,
    random_mixtures,
    top_tokens,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_equal_those_of_the_full_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, vectors, tokens = normal(50, 8) + 0.3, normal(7, 8, seed=1), torch.tensor([3, 9, 40])
    projected = (vectors.double() @ weight.double().T).numpy()
    mean, spread = projected.mean(1), projected.std(1)
    expected = math.sqrt(3) * (projected[:, tokens].mean(1) - mean) / spread
    for chunk in (1 << 24, 40):
        monkeypatch.setattr(vp, "CHUNK", chunk)
        torch.testing.assert_close(
            concept_scores(vectors, Head.of(weight), tokens).double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-4
        )


def test_scores_turn_with_the_sign_and_ignore_the_length() -> None:
    head, tokens, vectors = Head.of(normal(50, 8)), torch.tensor([1, 2]), normal(4, 8, seed=1)
    scores = concept_scores(vectors, head, tokens)
    torch.testing.assert_close(concept_scores(-3 * vectors, head, tokens), -scores)
    assert concept_scores(torch.zeros(2, 8), head, tokens).tolist() == [0, 0]


def test_random_mixtures_have_the_second_moments_of_the_layer() -> None:
    vectors = normal(30, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    null = random_mixtures(vectors, 20000, seed=0)
    torch.testing.assert_close(null.T @ null / len(null), vectors.T @ vectors / 30, atol=0.7, rtol=0.05)
    assert torch.equal(null, random_mixtures(vectors, 20000, seed=0))
    assert random_mixtures(vectors, 0, seed=0).shape == (0, 4)


def test_a_layer_of_noise_scores_like_its_null() -> None:
    head = Head.of(normal(400, 16))
    tokens = torch.arange(20)
    scores = concept_scores(normal(3000, 16, seed=1), head, tokens).abs()
    null = concept_scores(random_mixtures(normal(3000, 16, seed=1), 3000, 2), head, tokens).abs()
    assert stats.ks_2samp(scores.numpy(), null.numpy()).pvalue > 0.01


def test_top_tokens_equal_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, vectors = normal(50, 8), normal(7, 8, seed=1)
    full = (vectors @ weight.T).sort(dim=-1, descending=True)
    for chunk in (1 << 24, 100):
        monkeypatch.setattr(vp, "CHUNK", chunk)
        ids, values = top_tokens(vectors, weight, 5)
        assert torch.equal(ids, full.indices[:, :5])
        torch.testing.assert_close(values, full.values[:, :5])
    assert top_tokens(vectors, weight, 80)[0].shape == (7, 50)


@given(st.integers(1, 60), st.data())
def test_enrichment_is_the_hypergeometric_tail(vocabulary: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, vocabulary))
    tokens = data.draw(st.integers(1, vocabulary))
    low = max(0, k + tokens - vocabulary)
    overlap = data.draw(st.integers(low, min(k, tokens)))
    expected = stats.hypergeom.sf(overlap - 1, vocabulary, tokens, k)
    assert enrichment(overlap, k, tokens, vocabulary) == pytest.approx(-np.log10(expected), abs=1e-6)


def test_enrichment_does_not_underflow() -> None:
    assert 200 < enrichment(200, 200, 200, 150_000) < 2000


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_jaccard_is_a_similarity_of_sets(a: set[int], b: set[int]) -> None:
    assert jaccard(list(a) * 2, list(b)) == jaccard(list(b), list(a))
    assert (jaccard(list(a), list(b)) == 1) == (a == b)
    assert 0 <= jaccard(list(a), list(b)) <= 1


def test_distinctive_tokens_are_those_of_the_concept() -> None:
    rng = np.random.default_rng(0)
    common = lambda: list(rng.integers(0, 30, size=6))  # noqa: E731
    texts = [[100, 101, *common()] if i % 2 else [100, *common()] for i in range(10)]
    background = [common() for _ in range(200)]
    assert distinctive_tokens(texts, background) == [100, 101]


def test_repeating_a_token_in_one_text_makes_it_no_concepts() -> None:
    background = [[k % 30, (k + 1) % 30] for k in range(200)]
    texts = [[7, 8, *[99] * 50], *([k % 30] for k in range(9))]
    assert 99 not in distinctive_tokens(texts, background)


def test_shuffled_texts_have_no_concept() -> None:
    found = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rows = [list(rng.integers(0, 40, size=8)) for _ in range(120)]
        found += len(distinctive_tokens(rows[:12], rows[12:]))
    assert found <= 3  # at most 0.01 per set are expected


def test_without_background_every_token_counts() -> None:
    assert distinctive_tokens([[5, 6], [6]], []) == [6, 5]
    with pytest.raises(BadInput, match="its texts have no tokens"):
        distinctive_tokens([[]], [[1]])
