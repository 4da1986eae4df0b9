"""Multiple choice: does the model still pick the right letter? Utility on MMLU, or knowledge of items in the request.

All options of an item are compared in one pass: they share the prompt, and their letters are read from one row.

Source: Hendrycks et al. 2021, Measuring Massive Multitask Language Understanding; the prompt is theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar, Table
from expunge.audits.intervals import mean_interval
from expunge.audits.multiple_choice_items import LETTERS, Item, item_of, read_items
from expunge.audits.observations import Observations
from expunge.errors import BadInput, BrokenScores, Problem
from expunge.registry import near_names
from expunge.requests.request import example_id

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Array = NDArray[np.float64]
ROLES = ("forget", "retain", "holdout")
SET = "data"


@dataclass(frozen=True)
class Asked:
    """One item to ask, with what comes before it.

    Attributes:
        id: made from the question and its options, or the id of its row.
        subject: of the item; its answers are averaged on their own too.
        item: question, options and the right one.
        shots: solved items of the same subject, shown first.
    """

    id: str
    subject: str
    item: Item
    shots: tuple[Item, ...] = ()


def prompt_text(asked: Asked, shots: int) -> str:
    """Return the text that the letter comes after, with the last ``shots`` of the solved items in front."""
    about = f" about {asked.subject.replace('_', ' ')}" if asked.subject else ""
    head = f"The following are multiple choice questions (with answers){about}.\n\n" if asked.shots else ""
    solved = asked.shots[len(asked.shots) - shots :]
    return head + "".join(f"{_block(s)} {LETTERS[s.correct or 0]}\n\n" for s in solved) + _block(asked.item)


def _block(item: Item) -> str:
    options = "\n".join(f"{LETTERS[k]}. {text}" for k, text in enumerate(item.options))
    return f"{item.question}\n{options}\nAnswer:"


def letter_tokens(model: CausalLM, text: str, options: int) -> tuple[list[int], list[int]] | None:
    """Return the tokens of a text and, per option, the one token that its letter adds.

    Returns:
        None where the letters do not differ in one last token, so that one row cannot compare them.
    """
    rows = [model.tokenizer(f"{text} {LETTERS[k]}")["input_ids"] for k in range(options)]
    rows = [row[:-1] if row[-1] == model.encoder.eos_id else row for row in rows]
    heads, letters = {tuple(row[:-1]) for row in rows}, [row[-1] for row in rows]
    if len(heads) > 1 or len(set(letters)) < options:
        return None
    return list(heads.pop()), letters


class MultipleChoice(Audit):
    """Share of multiple-choice items whose right letter is the likeliest."""

    id = "multiple_choice"
    title = "Does the model still pick the right option?"
    default = False
    paper = "Hendrycks et al. 2021, Measuring Massive Multitask Language Understanding (arXiv:2009.03300)"

    class Config(AuditConfig):
        """Settings of the multiple-choice audit."""

        data: Path | None = Field(
            None, description="folder with dev/ and test/ in MMLU's format, or one CSV file; else the request's items"
        )
        subjects: tuple[str, ...] = Field((), description="subjects of the folder; all of them if left out")
        shots: int = Field(5, ge=0, description="solved items of dev/ shown first; fewer where the context is short")
        most_items: int = Field(1000, ge=1, description="items of each set asked at most, drawn by seed")

        @field_validator("data")
        @classmethod
        def _is_there(cls, path: Path | None) -> Path | None:
            if path is not None and not (path.is_file() or (path / "test").is_dir()):
                raise ValueError(f"'{path}' is neither a CSV file nor a folder with test/*.csv")
            return path

    def __init__(self, config: AuditConfig | None = None):
        super().__init__(config)
        self._read: list[Asked] = []

    def prepare(self, seen: Observations) -> None:
        if self.config.data is not None and not self._read:
            self._read = read_set(self.config.data, self.config.subjects, self.config.shots)

    def _sets(self, seen: Observations) -> dict[str, list[Asked]]:
        if self.config.data is not None:
            self.prepare(seen)
            sets = {SET: self._read}
        else:
            found = {role: {i: item_of(row) for i, row in seen.rows(role).items()} for role in ROLES}
            sets = {
                role: [Asked(i, "", item) for i, item in items.items() if item is not None and item.correct is not None]
                for role, items in found.items()
            }
        drawn = {
            name: sorted(asked, key=lambda a: hashlib.blake2b(f"{seen.seed}|{a.id}".encode()).digest())
            for name, asked in sets.items()
        }
        return {name: asked[: self.config.most_items] for name, asked in drawn.items() if asked}

    def run(self, seen: Observations) -> Finding:
        sets = self._sets(seen)
        if not sets:
            return Finding(self.id, "no data", note="no items: set data, or give examples with options and correct")
        said: dict[tuple[int, str], dict[str, Array]] = {}
        for name, asked in sets.items():
            for model in seen.models.values():
                if (id(model), name) not in said:
                    said[id(model), name] = answers(model, asked)
        # The same items for every model, so that all stay comparable.
        kept = {
            name: [a for a in asked if all(a.id in said[id(m), name] for m in seen.models.values())]
            for name, asked in sets.items()
        }
        left = sum(len(sets[name]) - len(kept[name]) for name in sets)
        note = f"{left} items do not fit the context or have letters of several tokens" if left else ""
        kept = {name: asked for name, asked in kept.items() if asked}
        if not kept:
            return Finding(self.id, "no data", note=note)
        numbers = {
            model: {name: _numbers(said[id(task), name], asked) for name, asked in kept.items()}
            for model, task in seen.models.items()
        }
        return Finding(
            self.id,
            scalars=[scalar for name in kept for scalar in _scalars(name)],
            estimates={
                model: {key: e for name, asked in kept.items() for key, e in _estimates(name, asked, sets_[name], seen)}
                for model, sets_ in numbers.items()
            },
            per_example={
                model: {i: row for found in sets_.values() for i, row in found.items()}
                for model, sets_ in numbers.items()
            },
            tables=[_by_subject(kept[SET], {m: n[SET] for m, n in numbers.items()})] if SET in kept else [],
            attempted={
                "items": {name: len(asked) for name, asked in kept.items()},
                "chance": {
                    name: float(np.mean([1 / len(a.item.options) for a in asked])) for name, asked in kept.items()
                },
                "shots": self.config.shots if self.config.data is not None else 0,
                "left out": left,
            },
            note=note,
        )


def read_set(data: Path, subjects: Sequence[str] = (), shots: int = 5) -> list[Asked]:
    """Read items in MMLU's layout (test/SUBJECT_test.csv, solved ones in dev/SUBJECT_dev.csv), or from one file.

    Raises:
        BadInput: files that are not items, subjects that are not there. All at once.
    """
    if data.is_file():
        return [_asked(data.stem, item, ()) for item in read_items(data)]
    files = {file.stem.removesuffix("_test"): file for file in sorted((data / "test").glob("*.csv"))}
    problems = [
        Problem("subjects", f"'{name}' is not in {data / 'test'}", near_names(name, list(files)))
        for name in subjects
        if name not in files
    ]
    if not files:
        problems.append(Problem(str(data / "test"), "has no CSV file", "give a folder in MMLU's layout"))
    if problems:
        raise BadInput(problems)
    out: dict[str, Asked] = {}
    for name in subjects or files:
        dev = data / "dev" / f"{name}_dev.csv"
        solved = tuple(read_items(dev)[:shots]) if shots and dev.is_file() else ()
        for item in read_items(files[name]):
            asked = _asked(name, item, solved)
            out.setdefault(asked.id, asked)
    return list(out.values())


def _asked(subject: str, item: Item, shots: tuple[Item, ...]) -> Asked:
    return Asked(example_id({"question": item.question, "options": list(item.options)}), subject, item, shots)


def answers(model: CausalLM, asked: Sequence[Asked]) -> dict[str, Array]:
    """Return id -> log-probabilities of the letters; items that do not fit the context are left out.

    Raises:
        BrokenScores: some of them are NaN or infinite.
    """
    limit, texts, letters, ids = model.encoder.max_length, [], [], []
    for one in asked:
        for shots in range(len(one.shots), -1, -1):
            found = letter_tokens(model, prompt_text(one, shots), len(one.item.options))
            if found is None or limit is None or len(found[0]) < limit:
                break
        if found is not None and (limit is None or len(found[0]) < limit):
            ids.append(one.id)
            texts.append(found[0])
            letters.append(found[1])
    out = dict(zip(ids, model.next_token_log_probs(texts, letters), strict=True)) if ids else {}
    if bad := sum(not np.isfinite(row).all() for row in out.values()):
        raise BrokenScores(f"{bad} of {len(out)} items have letters whose log-probability is NaN or infinite")
    return out


def _numbers(said: dict[str, Array], asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    out = {}
    for one in asked:
        row, right = said[one.id], one.item.correct or 0
        share = np.exp(row - np.logaddexp.reduce(row))
        # A tie is no answer: a model for which all letters are equal gets nothing right.
        best = bool(np.all(row[right] > np.delete(row, right)))
        out[one.id] = {"correct": float(best), "probability": float(share[right]), "chosen": float(row.argmax())}
    return out


def _scalars(name: str) -> list[Scalar]:
    of = "MMLU-format items" if name == SET else name
    return [
        Scalar(f"{name}_accuracy", f"Right letter likeliest, {of}", "share", "high" if name == "forget" else "none"),
        Scalar(f"{name}_probability", f"Right letter's share of the letters' probability, {of}", "probability"),
        Scalar(f"{name}_most_chosen", f"How often the most frequent letter is chosen, {of}", "share"),
    ]


def _estimates(
    name: str, asked: Sequence[Asked], numbers: dict[str, dict[str, float]], seen: Observations
) -> list[tuple[str, Estimate]]:
    groups = seen.groups(name) if name in ROLES else {}
    grouped = [groups[a.id] for a in asked] if groups else None
    chosen = [numbers[a.id]["chosen"] for a in asked]
    return [
        (f"{name}_accuracy", mean_interval([numbers[a.id]["correct"] for a in asked], grouped, seed=seen.seed)),
        (f"{name}_probability", mean_interval([numbers[a.id]["probability"] for a in asked], grouped, seed=seen.seed)),
        (f"{name}_most_chosen", Estimate(max(map(chosen.count, chosen)) / len(chosen), n=len(chosen))),
    ]


def _by_subject(asked: Sequence[Asked], numbers: dict[str, dict[str, dict[str, float]]]) -> Table:
    rows = []
    for subject in sorted({a.subject for a in asked}):
        ids = [a.id for a in asked if a.subject == subject]
        rows.append(
            [subject, len(ids), *(round(float(np.mean([n[i]["correct"] for i in ids])), 4) for n in numbers.values())]
        )
    return Table("Right letter likeliest, by subject", ("subject", "items", *numbers), rows)
