"""Plain modules are made again by a function that the user names, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.errors import BadInput
from expunge.tasks.factories import Factory, allowed_factory, check_factory
from expunge.tasks.storage import write_settings


def test_weights_follow_the_seed_and_nothing_else() -> None:
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 3, "outputs": 2})
    luck = torch.random.get_rng_state()
    one, same, other = (factory.make(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(luck, torch.random.get_rng_state())
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("os.path", {}, "write it as module:function"),
        ("no_such_module_here:f", {}, "cannot be imported"),
        ("expunge.tasks.mlp:nothing", {}, "cannot be imported"),
        ("expunge.tasks.mlp:mlp", {"inputs": 1}, "failed with"),
        ("builtins:dict", {}, "gives a dict, not a torch module"),
    ],
)
def test_what_makes_no_module_is_said(function: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Factory(function, arguments).make()


def test_only_ours_needs_no_word_of_the_user(tmp_path: Path) -> None:
    own = Factory("expunge.tasks.mlp:mlp", {"inputs": 1, "outputs": 2})
    assert allowed_factory(own.settings(), None, "x") == own
    foreign = {"function": "os:system", "arguments": {"command": "true"}}
    with pytest.raises(BadInput, match="if you trust it, name it: factory=os:system"):
        allowed_factory(foreign, None, "x")
    with pytest.raises(BadInput, match="'a:b', and x was made by 'os:system'"):
        allowed_factory(foreign, "a:b", "x")
    write_settings(tmp_path, {"factory": foreign})
    with pytest.raises(BadInput, match="os:system"):
        check_factory(tmp_path, None)
    write_settings(tmp_path, {})
    with pytest.raises(BadInput, match="needs none"):
        check_factory(tmp_path, "a:b")
