"""A model that was trained on the forget set is told from one that was not, and the verdict follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from datasets import Dataset

from expunge.audits.suite import run_audits
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor
from expunge.verdict import decide

TRAINING = {"epochs": 60, "batch_size": 16, "learning_rate": 1e-2, "warmup": 0.0}


@pytest.mark.parametrize("name", ["table", "table-regressor"])
def test_what_was_learned_shows_and_an_exact_retraining_passes(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], name: str
) -> None:
    forget, retain, holdout = (tiny_rows(name, part) for part in (range(30), range(30, 90), range(100, 140)))
    # Of what a network of 12 units can only learn by heart: outcomes that have nothing to do with the inputs.
    column = "target" if "regressor" in name else "label"
    forget = forget.remove_columns(column).add_column(column, list(forget[column])[::-1])
    request = DeletionRequest(forget, retain, holdout)
    everything = DeletionRequest(holdout, Dataset.from_list([*forget.to_list(), *retain.to_list()]))
    start = tiny_predictor(name)

    def trained(asked: DeletionRequest, seed: int) -> Predictor:
        done = unlearn(start, asked, "retrain", settings={**TRAINING, "seed": seed})
        assert isinstance(done.model, Predictor)
        return done.model

    original, again = trained(everything, 0), trained(request, 1)
    models = {
        "unlearned": original,
        "original": original,
        "oracle": trained(request, 2),
        "oracle-2": trained(request, 3),
    }
    found = run_audits(models, request, ["prediction_loss"]).findings[0]
    knows, never = (found.estimates[m]["forget_loss"].value for m in ("unlearned", "oracle"))
    assert knows is not None
    assert never is not None
    assert knows < 0.8 * never
    assert {e.statistic for e in found.evidence} == {"prediction_loss" if "regressor" in name else "confidence"}
    assert decide(found.evidence, removal_level="approximate").result != "removed"

    models["unlearned"] = again
    found = run_audits(models, request, ["prediction_loss"]).findings[0]
    assert decide(found.evidence, removal_level="exact").result != "not removed"
    names = {s.name for s in found.scalars}
    assert ("forget_absolute_error" if "regressor" in name else "forget_accuracy") in names
