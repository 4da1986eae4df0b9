from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expunge.audits.language.perplexity import Perplexity, perplexity
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_perplexity_by_hand() -> None:
    """Three tokens of 1/2 and one of 1/16 in two windows: (2^3 * 2^4)^(1/4) = 2^(7/4); windows of unequal length
    are not averaged as windows."""
    rows = [np.log([0.5, 0.5, 0.5]), np.log([1 / 16])]
    assert perplexity(rows) == pytest.approx(2 ** (7 / 4))
    assert math.isnan(perplexity([]))
    assert math.isinf(perplexity([np.array([-1e6])]))


def test_a_uniform_model_has_the_vocabulary_as_perplexity(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest, tmp_path: Path
) -> None:
    lm, text = make_lm(0), tmp_path / "text.txt"
    lm.model.get_output_embeddings().weight.data.zero_()
    text.write_text("Tomas moved from Velburg to Harrow Bay. " * 8, encoding="utf-8")
    finding = run_one(
        Perplexity(Perplexity.Config(text=text, window=16, stride=8)), Observations({"unlearned": lm}, request_)
    )
    assert finding.estimates["unlearned"]["perplexity"].value == pytest.approx(384, rel=1e-4)
    expected = len(lm.tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]) - 1
    expected += lm.tokenizer.bos_token_id is not None
    assert finding.estimates["unlearned"]["tokens"].value == expected


def test_no_text_is_no_data(make_lm: Callable[..., CausalLM], request_: DeletionRequest, tmp_path: Path) -> None:
    seen = Observations({"unlearned": make_lm(0)}, request_)
    assert run_one(Perplexity(), seen).status == "no data"
    (tmp_path / "empty.txt").write_text("")
    assert run_one(Perplexity(Perplexity.Config(text=tmp_path / "empty.txt")), seen).status == "no data"


def test_windows_that_would_skip_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens would be skipped"):
        Perplexity.Config(window=8, stride=8)
