from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset

from expunge.audits.classification.embedding_separability import EmbeddingSeparability, probe_scores
from expunge.audits.observations import Observations
from expunge.audits.roc import auc
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor


def test_out_of_fold_scores_do_not_reward_memory() -> None:
    """More features than examples: a probe tested on what it learned would separate noise perfectly."""
    luck = np.random.default_rng(0)
    noise = luck.normal(size=(2, 60, 100))
    assert 0.3 < auc(*probe_scores(noise[0], noise[1], 5, 0)) < 0.7
    shifted = noise[0] + 1.5 * (np.arange(100) == 3)
    assert auc(*probe_scores(shifted, noise[1], 5, 0)) > 0.75


def test_a_head_that_was_changed_alone_leaves_the_embedding_as_it_was(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    forget, holdout = tiny_rows("table", range(0, 90, 3)), tiny_rows("table", range(300, 360))
    retain = tiny_rows("table", [i for i in range(90) if i % 3])
    request = DeletionRequest(forget, retain, holdout, scenario="class")
    original = tiny_predictor("table")
    silent = original.copy()
    with torch.no_grad():
        silent.head_module().weight[0] = 0.0
        silent.head_module().bias[0] = -100.0
    finding = run_one(EmbeddingSeparability(), Observations({"unlearned": silent, "original": original}, request))
    found, before = finding.estimates["unlearned"], finding.estimates["original"]
    assert found["class_auc"].value > 0.8
    assert found["class_auc"] == before["class_auc"]
    assert 0.2 < found["membership_auc"].value < 0.8
    few = DeletionRequest(forget, retain, holdout.select(range(3)), scenario="class")
    finding = run_one(EmbeddingSeparability(), Observations({"unlearned": original}, few))
    assert finding.estimates["unlearned"]["membership_auc"].value is None


def test_a_model_without_a_last_layer_is_no_data(guesser: Callable, make_labelled: Callable) -> None:
    forget, new = make_labelled("abab"), make_labelled("abab", 100)
    model = guesser(dict.fromkeys([*forget["id"], *new["id"]], (0.0, 0.0, 0.0)))
    found = run_one(EmbeddingSeparability(), Observations({"unlearned": model}, DeletionRequest(forget, None, new)))
    assert found.status == "no data"
    assert "last linear layer" in found.note
