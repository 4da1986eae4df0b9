"""The example sets that audits look at, by role and id: rows, groups, and the (prompt, answer) pairs in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from datasets import Dataset

from expunge.errors import BadInput, Problem
from expunge.requests.request import ROLES, DeletionRequest
from expunge.tasks.encoding import Prompt, prompt_of

Field = Literal["answer", "paraphrased_answer", "paraphrased_prompt", "perturbed_answers"]
Pair = tuple[Prompt, str]


class Examples:
    """The sets of a request and further ones, each row known by its id.

    Args:
        request: gives the roles "forget", "retain" and "holdout".
        extra: further sets by role; same columns.
        limits: role -> how many examples of it to use at most, drawn by seed and id, so that order does not matter.
        seed: of that draw.

    Raises:
        BadInput: an extra set named like one of the request's, without ids, or a limit below 1.
    """

    def __init__(
        self,
        request: DeletionRequest,
        extra: Mapping[str, Dataset] | None = None,
        limits: Mapping[str, int] | None = None,
        seed: int = 0,
    ):
        problems = []
        for role, examples in (extra or {}).items():
            if role in ROLES:
                problems.append(Problem(f"extra set '{role}'", "is a role of the request", "give it another name"))
            if "id" not in examples.column_names:
                problems.append(Problem(f"extra set '{role}'", "has no column 'id'", "read it with read_examples"))
        for role, limit in (limits or {}).items():
            if limit < 1:
                problems.append(Problem(f"limit of '{role}'", f"is {limit}", "give at least 1, or leave the set out"))
        if problems:
            raise BadInput(problems)
        self._sets: dict[str, Dataset] = {**request.sets(), **(extra or {})}
        self._limits, self._seed = dict(limits or {}), seed
        self._drawn: dict[str, Dataset] = {}
        self._groups: dict[str, dict[str, str]] = {}
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}
        self._answers: dict[str, set[str]] | None = None

    @property
    def roles(self) -> list[str]:
        """Names of the sets that are present."""
        return list(self._sets)

    def add(self, role: str, examples: Dataset) -> None:
        """Make a further set known under a role, unless that role is known already."""
        if role not in self._sets:
            self._sets[role] = examples
            self._answers = None

    def rows(self, role: str) -> dict[str, dict[str, Any]]:
        """Return the examples of a role by id; empty where the role is absent."""
        if role not in self._sets:
            return {}
        if role not in self._rows:
            self._rows[role] = {str(row["id"]): row for row in self.dataset(role).to_list()}
        return self._rows[role]

    def dataset(self, role: str) -> Dataset:
        """Return the examples of a role, no more than its limit, in the order of the set.

        Raises:
            KeyError: there is no such set.
        """
        if role not in self._drawn:
            examples = self._sets[role]
            ids = list(examples["id"])
            limit = self._limits.get(role, len(ids))
            if limit < len(ids):
                drawn = set(sorted(ids, key=lambda i: _draw(self._seed, i))[:limit])
                examples = examples.select([k for k, i in enumerate(ids) if i in drawn])
            self._drawn[role] = examples
        return self._drawn[role]

    def groups(self, role: str) -> dict[str, str]:
        """Return example id -> group; empty unless every example of the role has one."""
        if role not in self._sets or "group" not in self._sets[role].column_names:
            return {}
        if role not in self._groups:
            chosen = self.dataset(role)
            found = {i: str(g) for i, g in zip(chosen["id"], chosen["group"], strict=True) if g not in (None, "")}
            self._groups[role] = found if len(found) == len(chosen) else {}
        return self._groups[role]

    def pairs(self, role: str, field: Field) -> dict[str, list[Pair]]:
        """Return example id -> the (prompt, answer) pairs of a field: one, or several for "perturbed_answers".

        Examples without the field are left out.
        """
        out = {}
        for identity, row in self.rows(role).items():
            prompt = prompt_of(row)
            if field == "paraphrased_prompt":
                pairs = [(rephrased(row), row["answer"])] if row.get(field) else []
            elif field == "perturbed_answers":
                pairs = [(prompt, answer) for answer in row.get(field) or () if answer.strip()]
            else:
                pairs = [(prompt, row[field])] if (row.get(field) or "").strip() else []
            if pairs:
                out[identity] = pairs
        return out

    def prompts(self, role: str) -> dict[str, Prompt]:
        """Return example id -> prompt. Raw text, which has no prompt to continue, is left out."""
        return {i: prompt for i, row in self.rows(role).items() if (prompt := prompt_of(row))}

    def answers_to(self, key: str) -> set[str]:
        """Return every answer to a prompt, whichever sets it is in; ``key`` as by ``prompt_key``."""
        if self._answers is None:
            self._answers = {}
            for role in self.roles:
                for identity, prompt in self.prompts(role).items():
                    self._answers.setdefault(prompt_key(prompt), set()).add(self.rows(role)[identity]["answer"])
        return self._answers[key]


def question_of(prompt: Prompt) -> str:
    """Return the text of a prompt; of a chat, its last user turn."""
    return prompt if isinstance(prompt, str) else str(prompt[_last_user(prompt)]["content"])


def asked_as(prompt: Prompt, text: str) -> Prompt:
    """Return a prompt with other text; in a chat, the last user turn is replaced."""
    if isinstance(prompt, str):
        return text
    turns = [dict(turn) for turn in prompt]
    turns[_last_user(prompt)]["content"] = text
    return turns


def _last_user(turns: Sequence[Mapping[str, str]]) -> int:
    return max((k for k, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns) - 1)


def rephrased(row: Mapping[str, Any]) -> Prompt:
    """Return the prompt of an example with its paraphrase; in a chat, the last user turn is replaced."""
    return asked_as(prompt_of(row), row["paraphrased_prompt"])


def prompt_key(prompt: Prompt) -> str:
    """Return a text that is equal for equal prompts only; a chat never equals a plain text."""
    return prompt if isinstance(prompt, str) else "\0" + json.dumps([dict(turn) for turn in prompt], ensure_ascii=False)


def _draw(seed: int, identity: str) -> bytes:
    return hashlib.blake2b(f"{seed}|{identity}".encode(), digest_size=8).digest()
