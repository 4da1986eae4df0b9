"""Making a plain ``nn.Module`` again: a function that the user names, and its arguments."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.errors import BadInput, Problem
from expunge.tasks.storage import stored_settings

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
# Functions that need no permission, because they are ours.
OWN = frozenset({"expunge.tasks.mlp:mlp"})


@dataclass(frozen=True)
class Factory:
    """A function that makes a module, and what it is called with.

    Attributes:
        function: ``module:function``, importable where this runs. Importing runs the module's code.
        arguments: keyword arguments, plain JSON values.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self, seed: int | None = None) -> nn.Module:
        """Return a new module; with a seed, its weights depend on the seed alone.

        Raises:
            BadInput: no such function, or it fails or gives something else.
        """
        if not NAME.fullmatch(self.function):
            raise BadInput(Problem("factory", f"is {self.function!r}", "write it as module:function"))
        module, _, name = self.function.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            fix = "give the name of a function in a module that can be imported from here (set PYTHONPATH)"
            raise BadInput(Problem(f"factory {self.function}", f"cannot be imported: {error}", fix)) from error
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            try:
                made = function(**dict(self.arguments))
            except Exception as error:
                what = f"failed with {dict(self.arguments)}: {error}"
                raise BadInput(Problem(f"factory {self.function}", what, "correct it or its arguments")) from error
        if not isinstance(made, nn.Module):
            what = f"gives a {type(made).__name__}, not a torch module"
            raise BadInput(Problem(f"factory {self.function}", what, "return the module"))
        return made

    def settings(self) -> dict[str, Any]:
        """Return plain values that describe it."""
        return {"function": self.function, "arguments": dict(self.arguments)}


def check_factory(folder: str | Path, named: str | None) -> None:
    """Refuse a folder whose module the user has not named the factory of, or a factory where none is needed.

    Raises:
        BadInput: see above.
    """
    stored = stored_settings(Path(folder))
    if "factory" in stored:
        allowed_factory(stored["factory"], named, f"model {folder}")
    elif named is not None:
        raise BadInput(Problem("factory", f"is given, and model {folder} needs none", "leave it out"))


def allowed_factory(stored: Mapping[str, Any], named: str | None, place: str) -> Factory:
    """Return the factory that a model's folder names, if the user named it too.

    A folder is data, and data must not choose what code runs here: without the user's word only our own are called.

    Args:
        stored: what the folder says.
        named: what the user named; None for nothing.
        place: the folder, for messages.

    Raises:
        BadInput: the user named nothing, or something else.
    """
    function = str(stored.get("function", ""))
    if function not in OWN and named is None:
        what = f"was made by {function!r}, which runs code that is not Expunge's"
        raise BadInput(Problem(place, what, f"if you trust it, name it: factory={function}"))
    if named is not None and named != function:
        raise BadInput(Problem("factory", f"is {named!r}, and {place} was made by {function!r}", "name that one"))
    arguments = stored.get("arguments", {})
    if not isinstance(arguments, dict):
        raise BadInput(Problem(place, "holds no arguments of its factory", "write the model again"))
    return Factory(function, arguments)
