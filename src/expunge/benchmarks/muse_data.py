"""The files of MUSE: what is to be forgotten and kept, what was never seen, and what is asked about both.

The layout is that of the published data, ``<folder>/``::

    raw/forget.json, retain1.json, retain2.json, holdout.json     lists of texts (or .txt files)
    verbmem/forget.json                                           [{"prompt", "gt"}]
    knowmem/forget_qa.json, retain_qa.json                        [{"question", "answer"}]
    knowmem/forget_qa_icl.json, retain_qa_icl.json                solved examples shown first
    privleak/forget.json, holdout.json                            lists of texts
    scal/forget_1.json ... forget_4.json                          nested forget sets
    sust/forget_1.json ... forget_4.json                          disjoint forget sets

Source: Shi et al. 2024, MUSE (arXiv:2407.06460), https://huggingface.co/datasets/muse-bench/MUSE-News and MUSE-Books.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.errors import BadInput, Problem
from expunge.requests.request import example_id
from expunge.tasks.causal_lm import CausalLM

CORPORA = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
FOLDS = 4


@dataclass(frozen=True)
class Corpus:
    """Everything that the six criteria read.

    Attributes:
        forget: texts to be forgotten.
        retain1: texts to be kept, which methods are given.
        retain2: texts to be kept, which methods never see.
        holdout: texts that no model was trained on.
        verbmem: (beginning, how it goes on) of texts to be forgotten.
        forget_qa, retain_qa: (question, answer).
        forget_icl, retain_icl: solved questions shown first.
        private: members and non-members of the membership attack: texts of the forget and the holdout set.
        scal: nested forget sets, smallest first; may be empty.
        sust: disjoint forget sets, in the order of the requests; may be empty.
    """

    forget: Sequence[str]
    retain1: Sequence[str]
    retain2: Sequence[str]
    holdout: Sequence[str]
    verbmem: Sequence[tuple[str, str]]
    forget_qa: Sequence[tuple[str, str]]
    retain_qa: Sequence[tuple[str, str]]
    forget_icl: Sequence[tuple[str, str]] = ()
    retain_icl: Sequence[tuple[str, str]] = ()
    private: tuple[Sequence[str], Sequence[str]] = ((), ())
    scal: Sequence[Sequence[str]] = field(default_factory=tuple)
    sust: Sequence[Sequence[str]] = field(default_factory=tuple)


def find(data: str | None, corpus: str) -> str:
    """Return where the files are: the given folder or name, ``$EXPUNGE_DATA/muse/<corpus>``, or the hub.

    Raises:
        BadInput: the given folder does not exist.
    """
    if data is not None:
        if data.startswith("muse-bench/"):
            return data
        for folder in (Path(data).expanduser(), Path(data).expanduser() / corpus):
            if (folder / "raw").is_dir():
                return str(folder)
        raise BadInput(Problem("--data", f"{data} holds no raw/", "give a folder in MUSE's layout, or --prepare BOOK"))
    if (root := os.environ.get("EXPUNGE_DATA")) and (Path(root) / "muse" / corpus / "raw").is_dir():
        return str(Path(root) / "muse" / corpus)
    return CORPORA[corpus]


def load_corpus(where: str) -> Corpus:
    """Read a corpus.

    Args:
        where: a folder in the published layout, or a name on the hub.

    Raises:
        BadInput: files that are missing or damaged; all of them are named.
    """
    read = _Hub(where) if where in CORPORA.values() else _Folder(Path(where))
    forget, holdout = read.texts("raw", "forget"), read.texts("raw", "holdout")
    private = (
        read.texts("privleak", "forget", needed=False) or forget,
        read.texts("privleak", "holdout", needed=False) or holdout,
    )
    corpus = Corpus(
        forget=forget,
        retain1=read.texts("raw", "retain1"),
        retain2=read.texts("raw", "retain2", needed=False),
        holdout=holdout,
        verbmem=read.pairs("verbmem", "forget", "prompt", "gt"),
        forget_qa=read.pairs("knowmem", "forget_qa", "question", "answer"),
        retain_qa=read.pairs("knowmem", "retain_qa", "question", "answer"),
        forget_icl=read.pairs("knowmem", "forget_qa_icl", "question", "answer", needed=False),
        retain_icl=read.pairs("knowmem", "retain_qa_icl", "question", "answer", needed=False),
        private=private,
        scal=read.folds("scal"),
        sust=read.folds("sust"),
    )
    if read.problems:
        raise BadInput(read.problems)
    return corpus


class _Source(ABC):
    """Reads the parts of a corpus and collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @abstractmethod
    def rows(self, part: str, split: str) -> list[Any] | None:
        """Return the rows of a split, or None where it cannot be read."""

    def texts(self, part: str, split: str, needed: bool = True) -> list[str]:
        rows = self._rows(part, split, needed)
        found = [row["text"] if isinstance(row, Mapping) else row for row in rows]
        return [text for text in found if isinstance(text, str) and text.strip()]

    def pairs(self, part: str, split: str, one: str, other: str, needed: bool = True) -> list[tuple[str, str]]:
        rows = self._rows(part, split, needed)
        bad = [k for k, row in enumerate(rows) if not isinstance(row, Mapping) or {one, other} - row.keys()]
        if bad:
            what = f"has no {one} and {other} in entry {bad[0]}"
            self.problems.append(Problem(f"{part}/{split}", what, "write it as the published files are"))
            return []
        return [(str(row[one]), str(row[other])) for row in rows]

    def folds(self, part: str) -> list[list[str]]:
        found = [self.texts(part, f"forget_{k}", needed=False) for k in range(1, FOLDS + 1)]
        return found if all(found) else []

    def _rows(self, part: str, split: str, needed: bool) -> list[Any]:
        rows = self.rows(part, split)
        if not rows and needed:
            self.problems.append(
                Problem(f"{part}/{split}", "is missing or empty", "copy the published files again, or --prepare BOOK")
            )
        return rows or []


class _Folder(_Source):
    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def rows(self, part: str, split: str) -> list[Any] | None:
        file = self.folder / part / f"{split}.json"
        try:
            if file.is_file():
                rows = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(rows, list):
                    raise ValueError("is not a list")
                return rows
            if (plain := file.with_suffix(".txt")).is_file():
                return [plain.read_text(encoding="utf-8")]
        except (OSError, ValueError) as error:
            self.problems.append(Problem(str(file), f"cannot be read: {error}", "copy it again"))
        return None


class _Hub(_Source):
    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def rows(self, part: str, split: str) -> list[Any] | None:
        from datasets import load_dataset

        try:
            rows: list[Any] = load_dataset(self.name, part, split=split).to_list()
        except (ValueError, KeyError):  # no such part in this corpus
            return None
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            fix = "check the network, or give --data FOLDER or --prepare BOOK"
            raise BadInput(Problem(self.name, f"cannot be read: {why}", fix)) from error
        return rows


def write_corpus(corpus: Corpus, folder: Path, about: Mapping[str, Any]) -> None:
    """Write a corpus in the published layout, and ``muse.json`` beside it, which says what it was made from."""

    def write(part: str, split: str, rows: Sequence[Any]) -> None:
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{split}.json").write_text(
            json.dumps(list(rows), ensure_ascii=False, indent=1), encoding="utf-8"
        )

    for split in ("forget", "retain1", "retain2", "holdout"):
        write("raw", split, getattr(corpus, split))
    write("verbmem", "forget", [{"prompt": prompt, "gt": gt} for prompt, gt in corpus.verbmem])
    for name, pairs in (
        ("forget_qa", corpus.forget_qa),
        ("retain_qa", corpus.retain_qa),
        ("forget_qa_icl", corpus.forget_icl),
        ("retain_qa_icl", corpus.retain_icl),
    ):
        write("knowmem", name, [{"question": question, "answer": answer} for question, answer in pairs])
    write("privleak", "forget", corpus.private[0])
    write("privleak", "holdout", corpus.private[1])
    write("privleak", "retain", corpus.retain2 or corpus.retain1)
    for part, folds in (("scal", corpus.scal), ("sust", corpus.sust)):
        for k, texts in enumerate(folds, 1):
            write(part, f"forget_{k}", texts)
    # Written last: a folder without it is not finished.
    (folder / "muse.json").write_text(json.dumps(dict(about), ensure_ascii=False, indent=1), encoding="utf-8")


def text_examples(texts: Sequence[str], model: CausalLM) -> Dataset:
    """Return texts as raw examples, cut into pieces that fit the model's context; repeated pieces once."""
    limit = model.encoder.max_length
    rows: dict[str, dict[str, str]] = {}
    for text in texts:
        for piece in pieces(text, model, limit - 2 if limit else None):
            identity = example_id({"prompt": "", "answer": piece})
            rows[identity] = {"id": identity, "prompt": "", "answer": piece}
    return Dataset.from_list(list(rows.values()))


def pieces(text: str, model: CausalLM, limit: int | None) -> list[str]:
    """Cut a text into consecutive pieces of at most ``limit`` tokens, at token boundaries."""
    found = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if limit is None or len(found) <= limit:
        return [text] if text.strip() else []
    starts = [found[k][0] for k in range(0, len(found), limit)]
    cuts = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    # A piece of one token has nothing to score.
    return [piece for piece in cuts if piece.strip() and model.count_tokens(piece) > 1]
