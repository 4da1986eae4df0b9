"""Models that several jobs of one process compare with: loaded once, and asked each question once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.runs.models import model_path
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Prompt
from expunge.tasks.loading import load_task
from expunge.tasks.tokens import TokenScores


class Remembering(CausalLM):
    """A frozen language model that remembers what it answered.

    An original or an oracle is then asked once, and not once for every model that is compared with it.
    """

    def __init__(self, model: CausalLM):
        self.__dict__.update(model.__dict__)
        self._scored: dict[str, TokenScores] = {}
        self._said: dict[str, str] = {}

    def copy(self) -> CausalLM:
        """Return a copy that remembers nothing, because copies are made to be changed."""
        plain = CausalLM.__new__(CausalLM)
        plain.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("_scored", "_said")})
        return plain.copy()

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[TokenScores]:
        """Score the pairs that are new and recall the others."""
        keys = [json.dumps(pair) for pair in pairs]
        new = {k: pair for k, pair in zip(keys, pairs, strict=True) if k not in self._scored}
        self._scored.update(zip(new, super().score(list(new.values())), strict=True))
        return [self._scored[k] for k in keys]

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: Sequence[int],
        *,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """Continue the prompts that are new and recall the others; sampling is not remembered."""
        if temperature > 0:
            return super().generate(prompts, max_new_tokens, temperature=temperature, seed=seed)
        keys = [json.dumps([prompt, limit]) for prompt, limit in zip(prompts, max_new_tokens, strict=True)]
        new = {k: (p, n) for k, p, n in zip(keys, prompts, max_new_tokens, strict=True) if k not in self._said}
        said = super().generate([p for p, _ in new.values()], [n for _, n in new.values()])
        self._said.update(zip(new, said, strict=True))
        return [self._said[k] for k in keys]


class Shelf:
    """Loads every model once. What stands here is read by many jobs and must not be changed by any."""

    def __init__(self) -> None:
        self._models: dict[str, Task] = {}

    def get(self, path: str | Path, **loading: Any) -> Task:
        """Return a model by path or hub name; a language model remembers what it answers.

        Args:
            path: the model, or the run folder that holds it.
            loading: options of ``load_task``.

        Raises:
            BadInput: it cannot be loaded.
        """
        place = str(model_path(path))
        key = json.dumps([place, loading], sort_keys=True)
        if key not in self._models:
            loaded = load_task(place, **loading)
            self._models[key] = Remembering(loaded) if type(loaded) is CausalLM else loaded
        return self._models[key]
