"""What a job is checked for before work starts: every method can be asked about a model that is not loaded."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from expunge.errors import BadInput
from expunge.methods.run import METHODS
from expunge.runs.check import check
from expunge.runs.recipe import Recipe

# What a method's own defaults ask too much of a tiny request for.
OWN = {"in_context": {"forget_shots": 1, "retain_shots": 1}}
LANGUAGE = [name for name in METHODS.names() if "causal_lm" in METHODS.get(name).tasks]


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_is_checked_without_weights(files: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", explode)
    fields = files.fields(method=method)
    fields["settings"] = OWN.get(method, {})
    if method in LANGUAGE:
        assert check(Recipe(**fields), None).method is not None
    else:
        with pytest.raises(BadInput, match=f"method {method}: does not serve causal_lm"):
            check(Recipe(**fields), None)


def test_a_method_that_looks_at_the_structure_refuses_what_is_not_there(files: Any) -> None:
    with pytest.raises(BadInput, match="method rmu: layer"):
        check(Recipe(**files.fields(method="rmu", settings={"layer": 99})), None)
