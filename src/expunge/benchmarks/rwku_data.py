"""The files of RWKU: who is to be forgotten, and what is asked about them, their neighbours and everything else.

The layout is that of the authors' preparation of the published data, one folder per target, ``<number>_<Name>/``::

    intro.json                        [{"target", "intro"}]
    forget_level1.json                cloze probes  [{"query", "answer", "level", "type", "subject"}]
    forget_level2.json                questions
    forget_level3.json                questions in nine adversarial wrappings, named by "type"
    neighbor_level1.json, neighbor_level2.json
    forget_mia.json, retain_mia.json  texts about the target, and about others  [{"text"}]
    retain_mmlu.json                  [{"question", "choices", "answer"}]
    triviaqa.json                     [{"question", "answers"}]
    truthful.json                     [{"question", "mc1_targets": {"choices", "labels"}}]
    retain_bbh.json                   [{"question", "cot", "answer"}]
    fluency.json                      [{"instruction"}]

Source: Jin et al. 2024, RWKU (arXiv:2406.10890), https://huggingface.co/datasets/jinzhuoran/RWKU (CC BY 4.0).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, Problem

FOLDER = re.compile(r"(\d+)_(.+)")
PROBES = {
    "forget_level1": "cloze", "forget_level2": "question", "forget_level3": "attack",
    "neighbor_level1": "neighbour cloze", "neighbor_level2": "neighbour question",
}  # fmt: skip
# The nine ways of the third level, by the beginning of their names in data and paper.
ATTACKS = {
    "prefix inj": "prefix injection", "affirmative": "affirmative suffix", "role": "role play",
    "multiple": "multiple choice", "reverse": "reverse query", "synonym": "synonym manipulation",
    "context": "background hint", "background": "background hint", "incontext": "in-context learning",
    "in-context": "in-context learning", "cross": "cross-lingual",
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """One thing that is asked.

    Attributes:
        query: what is asked; in a cloze probe with a blank.
        answer: the short true answer.
        level: a value of ``PROBES``.
        kind: of an attack, a value of ``ATTACKS``; the level otherwise.
    """

    query: str
    answer: str
    level: str
    kind: str


@dataclass(frozen=True)
class Target:
    """Somebody who is to be forgotten, and everything that is asked for it.

    Attributes:
        name: who.
        intro: who that is, in a sentence.
        probes: about the target and about neighbours.
        texts: about the target, and about others whom the model knows too.
        choices: multiple choice on anything else: (question, options, index of the right one).
        trivia: (question, accepted answers) on anything else.
        truths: questions with tempting wrong answers: (question, answers, index of the true one).
        reasoning: (question, solved examples, answer).
        instructions: what to write about, for fluency.
    """

    name: str
    intro: str
    probes: Sequence[Probe]
    texts: tuple[Sequence[str], Sequence[str]] = ((), ())
    choices: Sequence[tuple[str, Sequence[str], int]] = ()
    trivia: Sequence[tuple[str, Sequence[str]]] = ()
    truths: Sequence[tuple[str, Sequence[str], int]] = ()
    reasoning: Sequence[tuple[str, str, str]] = ()
    instructions: Sequence[str] = ()


def find(data: str | None) -> Path | None:
    """Return the folder of the targets: the one given or ``$EXPUNGE_DATA/rwku/Target``; None where there is none.

    Raises:
        BadInput: the given folder holds no target.
    """
    places = [Path(data).expanduser()] if data else []
    if not data and (root := os.environ.get("EXPUNGE_DATA")):
        places = [Path(root) / "rwku"]
    for place in places:
        for folder in (place, place / "Target"):
            if folder.is_dir() and any(FOLDER.fullmatch(f.name) and f.is_dir() for f in folder.iterdir()):
                return folder
    if data:
        what = f"{data} holds no folder such as 1_Stephen_King with forget_level1.json in it"
        raise BadInput(
            Problem("--data", what, "give the folder of the targets, or leave it out for the embedded world")
        )
    return None


def read_targets(folder: Path, count: int | None = None) -> list[Target]:
    """Read the targets of a folder, the lowest numbers first.

    Args:
        folder: with one folder per target.
        count: only so many.

    Raises:
        BadInput: every file that is missing, cannot be read or has not the fields.
    """
    named = [(FOLDER.fullmatch(f.name), f) for f in sorted(folder.iterdir()) if f.is_dir()]
    ordered = sorted((int(m[1]), f) for m, f in named if m)
    problems: list[Problem] = []
    found = [_target(place, problems) for _, place in ordered[:count]]
    if problems:
        raise BadInput(problems[:10])
    return found


def _target(place: Path, problems: list[Problem]) -> Target:
    def rows(name: str, fields: Sequence[str], *, needed: bool = False) -> list[dict[str, Any]]:
        file = place / f"{name}.json"
        if not file.is_file():
            if needed:
                problems.append(Problem(str(file), "is not there", "prepare the target again"))
            return []
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            assert isinstance(value, list)
        except (OSError, ValueError, AssertionError):
            problems.append(Problem(str(file), "is not a JSON list", "copy it again"))
            return []
        # A probe without an answer would score 0 whatever the model says, as if it had forgotten.
        bad = [i for i, row in enumerate(value) if not isinstance(row, dict) or any(_blank(row, f) for f in fields)]
        if bad:
            what = f"has no {' or '.join(fields)} in {len(bad)} of {len(value)} entries, first at {bad[0]}"
            problems.append(Problem(str(file), what, "copy it again"))
            return []
        return value

    probes = [
        Probe(str(row["query"]), str(row["answer"]), level, attack_kind(row) if level == "attack" else level)
        for name, level in PROBES.items()
        for row in rows(name, ("query", "answer"), needed=name in ("forget_level1", "forget_level2"))
    ]
    intro = rows("intro", ("target", "intro"), needed=True)
    about, others = ([str(r["text"]) for r in rows(n, ("text",))] for n in ("forget_mia", "retain_mia"))
    return Target(
        name=str(intro[0]["target"]) if intro else place.name,
        intro=str(intro[0]["intro"]) if intro else "",
        probes=probes,
        texts=(about, others),
        choices=[
            (str(r["question"]), list(map(str, r["choices"])), int(r["answer"]))
            for r in rows("retain_mmlu", ("question", "choices", "answer"))
        ],
        trivia=[(str(r["question"]), list(map(str, r["answers"]))) for r in rows("triviaqa", ("question", "answers"))],
        truths=[
            (str(r["question"]), list(map(str, r["mc1_targets"]["choices"])), r["mc1_targets"]["labels"].index(1))
            for r in rows("truthful", ("question", "mc1_targets"))
        ],
        reasoning=[
            (str(r["question"]), str(r["cot"]), str(r["answer"]))
            for r in rows("retain_bbh", ("question", "cot", "answer"))
        ],
        instructions=[str(r["instruction"]) for r in rows("fluency", ("instruction",))],
    )


def _blank(row: Mapping[str, Any], field: str) -> bool:
    value = row.get(field)
    return value is None or (isinstance(value, str) and not value.strip())


def attack_kind(row: Mapping[str, Any]) -> str:
    """Return which of the nine ways a probe of the third level is asked in; names differ between data and paper."""
    name = str(row.get("type", "")).strip().lower()
    return next((kind for start, kind in ATTACKS.items() if name.startswith(start)), name or "attack")


def write_targets(folder: Path, targets: Sequence[Target]) -> None:
    """Write targets in the layout that ``read_targets`` reads."""
    for number, target in enumerate(targets, 1):
        place = folder / f"{number}_{target.name.replace(' ', '_')}"
        place.mkdir(parents=True, exist_ok=True)
        files: dict[str, list[dict[str, Any]]] = {"intro": [{"target": target.name, "intro": target.intro}]}
        for name, level in PROBES.items():
            files[name] = [
                {"query": p.query, "answer": p.answer, "level": name[-1], "type": p.kind, "subject": target.name}
                for p in target.probes
                if p.level == level
            ]
        files["forget_mia"], files["retain_mia"] = ([{"text": text} for text in texts] for texts in target.texts)
        files["retain_mmlu"] = [{"question": q, "choices": list(c), "answer": a} for q, c, a in target.choices]
        files["triviaqa"] = [{"question": q, "answers": list(a)} for q, a in target.trivia]
        files["truthful"] = [
            {"question": q, "mc1_targets": {"choices": list(c), "labels": [int(k == a) for k in range(len(c))]}}
            for q, c, a in target.truths
        ]
        files["retain_bbh"] = [{"question": q, "cot": c, "answer": a} for q, c, a in target.reasoning]
        files["fluency"] = [{"instruction": text} for text in target.instructions]
        for name, rows in files.items():
            text = json.dumps(rows, indent=1, ensure_ascii=False)
            (place / f"{name}.json").write_text(text, encoding="utf-8")
