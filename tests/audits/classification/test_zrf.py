from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from expunge.audits.classification.zrf import Zrf, js_divergence, released_js, zrf
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor

row = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda r: sum(r) > 0.1)


@settings(max_examples=40, deadline=None)
@given(row, row)
def test_against_scipy(one: list[float], other: list[float]) -> None:
    p, q = (np.array([r]) / sum(r) for r in (one, other))
    found = js_divergence(p, q)[0]
    assert found == pytest.approx(jensenshannon(p[0], q[0]) ** 2, abs=1e-7)
    assert -1e-12 <= found <= np.log(2) + 1e-12
    assert found == pytest.approx(js_divergence(q, p)[0])


def test_alike_is_1_and_disjoint_is_least() -> None:
    p, q = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert zrf(p, p) == 1.0
    assert zrf(p, q) == pytest.approx(1 - np.log(2))
    with pytest.raises(ValueError, match="no example"):
        zrf(p[:0], q[:0])


def test_the_released_form_divides_by_all_cells() -> None:
    """Worked out cell by cell; both the direction of the divergence and the average are another's."""
    p, q = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]), np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])
    total = 0.0
    for a, b in zip(p.ravel(), q.ravel(), strict=True):
        m = (a + b) / 2
        total += m * np.log(m / a) + m * np.log(m / b)
    assert released_js(p, q) == pytest.approx(total / 2 / 6)
    assert released_js(p, q) < js_divergence(p, q).mean()


def test_random_models_are_like_each_other_and_a_trained_one_is_not(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    request = DeletionRequest(tiny_rows("table", range(20)), None, tiny_rows("table", range(40, 60)))
    knows, never = tiny_predictor("table", 1), tiny_predictor("table", 2)
    for parameter in knows.head_module().parameters():
        parameter.data *= 60  # sure of everything
    found = run_one(Zrf(), Observations({"unlearned": knows, "oracle": never}, request))
    assert found.estimates["oracle"]["forget_zrf"].value > 0.9
    assert found.estimates["unlearned"]["forget_zrf"].value < found.estimates["oracle"]["forget_zrf"].value - 0.1
    assert set(found.estimates["unlearned"]) == {"forget_zrf", "holdout_zrf"}


def test_a_model_that_cannot_be_made_again_is_no_data(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    model = tiny_predictor("module")
    model.factory = None
    found = run_one(Zrf(), Observations({"unlearned": model}, DeletionRequest(tiny_rows("module", range(4)))))
    assert found.status == "no data"
    assert "factory" in found.note
