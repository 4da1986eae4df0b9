"""Settings are sorted between a method and the loop, and every mistake is named at once."""

from __future__ import annotations

import pytest

from expunge.errors import BadInput
from expunge.methods.base import selection_of, settle
from expunge.methods.general.retrain import Retrain
from expunge.methods.language.npo import NPO


def test_keys_go_where_they_belong() -> None:
    method, train = settle(
        NPO,
        {"beta": 0.2, "retain": "kl", "epochs": 3, "stop.every": 5, "stop": {"retain_ceiling": 0.1}, "lora.rank": 4},
    )
    assert (method.config.beta, method.config.retain) == (0.2, "kl")
    assert (train.epochs, train.stop.every, train.stop.retain_ceiling) == (3, 5, 0.1)
    assert train.lora is not None
    assert (train.lora.rank, train.lora.alpha) == (4, 16.0)


def test_defaults_of_a_method_yield_to_the_user() -> None:
    assert settle(Retrain, {})[1].epochs == 20
    assert settle(Retrain, {"epochs": 2})[1].epochs == 2
    assert settle(NPO, {})[1].learning_rate == 1e-5


def test_all_mistakes_are_named_at_once() -> None:
    wrong = {"bet": 1, "beta": -1, "epochs": 0, "stop.evry": 3, "retain": "kll"}
    with pytest.raises(BadInput) as caught:
        settle(NPO, wrong)
    found = {p.where: p for p in caught.value.problems}
    assert set(found) == {"bet", "npo: beta", "npo: retain", "training: epochs", "training: stop.evry"}
    assert "beta" in found["bet"].fix
    assert "every" in found["training: stop.evry"].fix
    assert "-1" in found["npo: beta"].what


def test_a_selection_is_named_with_its_own_settings() -> None:
    _, train = settle(NPO, {"select.by": "saliency", "select.share": 0.25})
    chosen = selection_of(train)
    assert chosen is not None
    assert chosen.id == "saliency"
    assert chosen.config.share == 0.25
    assert selection_of(settle(NPO, {})[1]) is None


def test_what_is_wrong_with_a_selection_is_said_with_everything_else() -> None:
    with pytest.raises(BadInput) as caught:
        settle(NPO, {"select.by": "salience", "betta": 1})
    assert "did you mean saliency" in str(caught.value)
    assert "betta" in str(caught.value)
    with pytest.raises(BadInput, match=r"select.by=saliency: share.*less than or equal to 1"):
        settle(NPO, {"select.share": 2})
    with pytest.raises(BadInput, match="did you mean share"):
        settle(NPO, {"select.shar": 0.2})
