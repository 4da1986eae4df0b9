"""Finds the methods, audits and benchmarks that are in the house, by being there.

A room is a package; every module in it (also in sub-packages) may define classes with an ``id``. Nothing has to be
listed anywhere: adding a file adds its id.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cached_property
from typing import Generic, TypeVar, cast

from expunge.errors import BadInput, Problem

T = TypeVar("T")


def near_names(name: str, known: list[str]) -> str:
    """Say which known names resemble a wrong one (case aside), or list them all when none does.

    A name that is much less like it than the most like one is not named.
    """
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, other, name.casefold()).ratio() for other in close]
    near = [folded[other] for other, like in zip(close, likeness, strict=True) if like > likeness[0] - 0.15]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(sorted(known))}"


class Registry(Generic[T]):
    """All concrete subclasses of a base class that live in one room, by their ``id``.

    Args:
        package: dotted name of the room, such as "expunge.methods".
        base: the class they derive from.
        noun: what they are called in error messages.
    """

    def __init__(self, package: str, base: type[T], noun: str):
        self.package, self.base, self.noun = package, base, noun

    @cached_property
    def _classes(self) -> dict[str, type[T]]:
        found: dict[str, type[T]] = {}
        root = importlib.import_module(self.package)
        for module_info in pkgutil.walk_packages(root.__path__, prefix=f"{self.package}."):
            module = importlib.import_module(module_info.name)
            for _, candidate in inspect.getmembers(module, inspect.isclass):
                own = candidate.__module__ == module.__name__ and issubclass(candidate, self.base)
                identity = candidate.__dict__.get("id")
                if not own or inspect.isabstract(candidate) or not isinstance(identity, str):
                    continue
                if identity in found:
                    raise RuntimeError(f"two {self.noun}s are called '{identity}': {found[identity]} and {candidate}")
                found[identity] = cast("type[T]", candidate)
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """Return every id, sorted."""
        return list(self._classes)

    def classes(self) -> list[type[T]]:
        """Return every class, sorted by id."""
        return list(self._classes.values())

    def get(self, name: str) -> type[T]:
        """Return the class with this id.

        Raises:
            BadInput: no such id; the message suggests near names.
        """
        if name not in self._classes:
            raise BadInput(Problem(self.noun, f"there is no '{name}'", near_names(name, self.names())))
        return self._classes[name]
