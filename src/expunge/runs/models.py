"""The models of a comparison: by path or in memory, real ones or whatever behaves like one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from expunge.errors import BadInput, Problem, UnsupportedModel, collected
from expunge.methods.base import Unlearned
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.tasks.encoding import Prompt
from expunge.tasks.loading import load_task
from expunge.tasks.storage import is_model
from expunge.tasks.tokens import TokenScores
from expunge.tasks.weights import check_values


@runtime_checkable
class Answers(Protocol):
    """The least that a wrapped model must offer to be audited; see ``CausalLM`` for what each returns."""

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[TokenScores]:
        """Score answers, teacher-forced."""
        ...

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: Sequence[int]) -> list[str]:
        """Continue prompts greedily."""
        ...

    def copy(self) -> Any:
        """Return an independent copy."""
        ...


AnyModel = Task | Unlearned | Answers | str | Path


class NotOffered(UnsupportedModel, AttributeError):
    """An audit asked a wrapped model for something that it does not offer."""


class Wrapped:
    """Lets audits talk to a model that only offers ``score``, ``generate`` and ``copy``.

    Args:
        inner: the wrapped model; whatever else it offers is passed through.
        count_tokens: counts tokens where the wrapped model does not.
    """

    kind = "causal_lm"

    def __init__(self, inner: Any, count_tokens: Callable[[str], int] | None = None):
        self._inner = inner
        self.source = str(getattr(inner, "source", type(inner).__name__))
        own = getattr(inner, "cost", None)
        self.cost: Cost = own if isinstance(own, Cost) else Cost()
        self._accounts_itself = isinstance(own, Cost)
        self._count = getattr(inner, "count_tokens", None) or count_tokens
        if self._count is None:
            raise BadInput(
                Problem(
                    f"model {type(inner).__name__}",
                    "offers no count_tokens, and no other model is there to count with",
                    "add count_tokens(text) -> int to it, or give the original model",
                )
            )

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[TokenScores]:
        """Score answers; the account grows by one forward per call where the wrapped model keeps none."""
        return list(self._measured(lambda: self._inner.score(pairs), len(pairs)))

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: Sequence[int]) -> list[str]:
        """Continue prompts."""
        return list(self._measured(lambda: self._inner.generate(prompts, max_new_tokens), len(prompts)))

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text."""
        assert self._count is not None
        return int(self._count(text))

    def copy(self) -> Wrapped:
        """Return an independent copy."""
        return Wrapped(self._inner.copy(), self._count)

    def _measured(self, call: Callable[[], Any], sequences: int) -> Any:
        if self._accounts_itself:
            return call()
        self.cost.forwards += 1
        self.cost.sequences += sequences
        with self.cost.measured():
            return call()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(self.__dict__["_inner"], name)
        except (AttributeError, KeyError):
            inner = type(self.__dict__.get("_inner")).__name__
            raise NotOffered(
                Problem(f"model {inner}", f"offers no {name}, which this audit needs", "audit the weights themselves")
            ) from None


def gather(model: AnyModel, original: AnyModel | None, oracles: Sequence[AnyModel], **loading: Any) -> dict[str, Any]:
    """Return the models of a comparison by name, each path loaded once.

    Args:
        model: the model under audit; it is named "unlearned".
        original, oracles: what it is compared with; oracles are named "oracle", "oracle-2", ...
        loading: passed to ``load_task``.

    Raises:
        BadInput: every model that cannot be loaded or used.
    """
    asked: dict[str, AnyModel] = {"unlearned": model}
    if original is not None:
        asked["original"] = original
    asked |= {f"oracle-{k}" if k > 1 else "oracle": oracle for k, oracle in enumerate(oracles, 1)}
    problems: list[Problem] = []
    loaded: dict[str, Task] = {}
    found: dict[str, Any] = {}
    for name, given in asked.items():
        if isinstance(given, Unlearned):
            given = given.model
        if isinstance(given, str | Path):
            try:
                path = str(model_path(given))
                if path not in loaded:
                    loaded[path] = load_task(path, **loading)
                found[name] = loaded[path]
            except BadInput as error:
                problems += error.problems or [Problem(name, str(error), "give another model")]
        elif isinstance(given, Task):
            found[name] = given
        elif isinstance(given, Answers):
            found[name] = given  # wrapped below, when it is known who can count tokens
        else:
            what = f"is a {type(given).__name__}, which is no model that can be audited"
            problems.append(Problem(f"model '{name}'", what, "give a path, a task, or score, generate and copy"))
    for task in {id(m): m for m in found.values() if isinstance(m, Task)}.values():
        with collected(problems):
            check_values(task)
    if problems:
        raise BadInput(problems)
    counter = next((m.count_tokens for m in found.values() if isinstance(m, Task) and hasattr(m, "count_tokens")), None)
    wrappers: dict[int, Wrapped] = {}
    for name, one in found.items():
        if not isinstance(one, Task):
            found[name] = wrappers.setdefault(id(one), Wrapped(one, counter))
    return found


def model_path(path: str | Path) -> str | Path:
    """Return the model in a run folder where the path is one, otherwise the path itself."""
    folder = Path(path)
    inside = folder / "model"
    return inside if not is_model(folder) and is_model(inside) else path


def stated_level(model: AnyModel) -> str:
    """Return the removal level that is known of a model: from its method, or from what a run wrote beside it.

    A wrapped model is a guard: its weights were not looked at.
    """
    if isinstance(model, Unlearned):
        return model.removal_level
    if isinstance(model, str | Path):
        return str(stored(model_path(model)).get("removal_level", "unknown"))
    return str(getattr(model, "removal_level", "unknown")) if isinstance(model, Task) else "guard"


def stored(path: str | Path) -> Mapping[str, Any]:
    """Return what a run wrote beside the weights ("method", "removal_level"); empty where no run did."""
    try:
        return dict(json.loads((Path(path) / "expunge.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
