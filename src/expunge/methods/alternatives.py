"""Other answers to the questions to be forgotten: refusals, texts of the user's, or a column of the forget set.

They become the stream "alternative", whose ids ``<forget id>#<number>`` tie each answer to its question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import Field, PositiveInt

from expunge.errors import BadInput, Problem, collected
from expunge.methods.base import MethodConfig, ObjectiveMethod
from expunge.registry import near_names
from expunge.requests.places import place, some
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.training.objective import Stream
from expunge.training.plan import ALTERNATIVE, draw

REFUSALS: tuple[str, ...] = (
    "I don't know.",
    "I'm afraid I don't know the answer to that.",
    "I have no information about this.",
    "Sorry, that is something I can't tell you.",
    "This is not something I know about.",
    "I can't answer that question.",
    "I have never come across this, so I can't say.",
    "I would only be guessing, so I'd rather not answer.",
    "No idea, I'm sorry.",
    "That lies outside of what I know.",
    "I don't have an answer for you here.",
    "I really couldn't say.",
    "My knowledge doesn't cover this.",
    "I wish I could help, but I don't know.",
    "I'm not able to give you an answer to this one.",
    "Unfortunately, I know nothing about it.",
    "I haven't learned anything about that.",
    "I'm sorry, but nothing comes to mind.",
    "I'm in the dark about this one.",
    "That's a question I can't help with.",
    "I don't have any details on that.",
    "You would have to ask someone else; I don't know.",
    "I lack the knowledge to answer this.",
    "I'm not familiar with this, sorry.",
    "As far as I'm concerned, this is unknown.",
    "I can't recall anything of the kind.",
    "I don't think I can answer that.",
    "There is nothing I can tell you about this.",
    "I must admit that I don't know.",
    "I'm at a loss here; I have no answer.",
    "This is new to me, so I can't answer.",
    "Regrettably, I have no knowledge of this.",
    "I can't offer any information on that.",
    "I'm unsure and would rather not speculate.",
    "That is beyond me.",
    "I have nothing to say on this subject.",
    "I couldn't tell you, sorry.",
    "It seems that I don't know this.",
    "I'm missing the facts I would need to answer.",
    "I do not know the answer.",
    "I can't be of help with this question.",
    "Nothing I have learned answers this question.",
    "I'm not aware of any such details.",
    "I have to pass on this one.",
    "Sorry, I am not informed about this.",
    "I don't hold any information about that.",
    "Whatever I said would be made up, so I won't answer.",
    "I'm unable to answer because I don't know.",
    "That isn't something I was taught.",
    "I apologize, but the answer is unknown to me.",
    "I can't find an answer to that in what I know.",
    "My answer has to be that I don't know.",
    "I know too little about this to respond.",
    "Please look this up elsewhere; I don't have the answer.",
    "I've got nothing on that, I'm afraid.",
    "I cannot say anything certain about this.",
    "This question is one I have no answer to.",
    "I'd like to help, but this is unknown to me.",
    "I'm sorry, I simply don't know.",
    "I have not been given any information on this topic.",
)


def alternatives(examples: Dataset, answers: Sequence[Sequence[str]], per_example: int | None = None) -> Dataset:
    """Pair every question with other answers.

    An answer equal to the example's own, up to case and white space, is left out.

    Args:
        examples: canonical examples.
        answers: for every example, its other answers.
        per_example: keep this many of them, chosen by (example id, answer) alone; None keeps all.

    Returns:
        A dataset with one row per pair: ``id`` (``<example id>#<number>``), ``prompt``, ``answer`` and, where the
        examples have them, ``messages``.

    Raises:
        BadInput: some example has no other answer left.
    """
    names = [name for name in ("prompt", "messages") if name in examples.column_names]
    rows: list[dict[str, Any]] = []
    bare: list[int] = []
    for index, (row, given) in enumerate(zip(examples, answers, strict=True)):
        kept = {k: text for k, text in enumerate(given) if text.strip() and plain(text) != plain(row["answer"])}
        if not kept:
            bare.append(index)
        chosen = list(kept)
        if per_example is not None:
            chosen = sorted(sorted(chosen, key=lambda k: draw(row["id"], kept[k]))[:per_example])
        asked = {name: row[name] for name in names}
        rows += [{"id": f"{row['id']}{ALTERNATIVE}{k}", **asked, "answer": kept[k]} for k in chosen]
    if bare:
        what = f"{len(bare)} example(s) have none that differs from what is to be forgotten: "
        what += some(bare, lambda i: place(examples, i))
        raise BadInput(Problem("alternative answers", what, "give at least one per example"))
    return Dataset.from_list(rows)


def plain(text: str) -> str:
    """Return a text without differences of case and white space."""
    return " ".join(text.split()).casefold()


def column_answers(examples: Dataset, column: str) -> list[list[str]]:
    """Read other answers from a column that holds a text or a list of texts.

    Raises:
        BadInput: no such column, or rows of it that hold no text.
    """
    if column not in examples.column_names:
        fix = near_names(column, examples.column_names)
        raise BadInput(Problem("answers_column", f"the forget set has no column '{column}'", fix))
    found: list[list[str]] = []
    wrong: list[int] = []
    for index, value in enumerate(examples[column]):
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            wrong.append(index)
        found.append(texts)
    if wrong:
        what = f"holds no text in {len(wrong)} row(s): {some(wrong, lambda i: place(examples, i))}"
        raise BadInput(Problem(f"column '{column}'", what, "give a text or a list of texts in every row"))
    return found


def file_answers(path: str) -> list[str]:
    """Read answers from a text file, one per line; empty lines are skipped.

    Raises:
        BadInput: the file cannot be read as UTF-8 text, or has no answer in it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            Problem(f"answers_file {path}", f"cannot be read: {error}", "give a UTF-8 text file, one answer per line")
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise BadInput(Problem(f"answers_file {path}", "has no answer in it", "write one answer per line"))
    return found


class AnswersConfig(MethodConfig):
    """Which other answers the questions to be forgotten get: refusals unless one of the sources is named."""

    answers: tuple[str, ...] = Field((), description="the answers themselves, in place of the refusals that we ship")
    answers_file: str | None = Field(None, description="text file with one answer per line, in their place")
    answers_column: str | None = Field(
        None, description="column of the forget set with each example's own answer, or list of answers, in their place"
    )
    answers_per_example: PositiveInt | None = Field(
        None, description="how many of the answers each example may meet over all epochs; all if not given"
    )


class AlternativesMethod(ObjectiveMethod):
    """An objective that reads the stream "alternative"; a method says where its answers come from."""

    @abstractmethod
    def check_answers(self, task: Task, forget: Dataset) -> None:
        """Refuse before any compute what the answers cannot be made from.

        Raises:
            BadInput: naming it.
        """

    @abstractmethod
    def make_answers(self, task: Task, forget: Dataset) -> Dataset:
        """Return the pool of alternative answers; ``task`` is the model before unlearning."""

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also answers that cannot be had or matched with the questions, together with all else.

        Raises:
            BadInput: every problem.
        """
        problems: list[Problem] = []
        with collected(problems):
            super().check(task, request)
        with collected(problems):
            if task.kind in self.tasks:
                self.check_answers(task, request.forget)
        if problems:
            raise BadInput(problems)

    def examples(self, stream: Stream, task: Task, request: DeletionRequest) -> Dataset:
        """Return the examples of a stream; the alternatives are made here."""
        if stream == "alternative":
            return self.make_answers(task, request.forget)
        return super().examples(stream, task, request)


class AnswersMethod(AlternativesMethod):
    """An objective whose alternative answers are what its ``AnswersConfig`` says."""

    def check_answers(self, task: Task, forget: Dataset) -> None:
        """Pair questions and answers once, to see that it can be done."""
        self.make_answers(None, forget)

    def make_answers(self, task: Task | None, forget: Dataset) -> Dataset:
        """Pair every question with the refusals, or with what the user named."""
        config = self.config
        named = [key for key in ("answers", "answers_file", "answers_column") if getattr(config, key)]
        if len(named) > 1:
            raise BadInput(Problem(" and ".join(named), "all say where the answers come from", "give one of them"))
        if config.answers_column:
            return alternatives(forget, column_answers(forget, config.answers_column), config.answers_per_example)
        refuse_raw_text(forget)
        if blank := [text for text in config.answers if not text.strip()]:
            raise BadInput(Problem("answers", f"{len(blank)} of them are empty", "leave them out"))
        shared = config.answers or (file_answers(config.answers_file) if config.answers_file else REFUSALS)
        return alternatives(forget, [shared] * len(forget), config.answers_per_example)


def refuse_raw_text(forget: Dataset) -> None:
    """Refuse examples without a question, which cannot be answered in another way.

    Raises:
        BadInput: naming them.
    """
    messages = forget["messages"] if "messages" in forget.column_names else [None] * len(forget)
    raw = [i for i, (p, m) in enumerate(zip(forget["prompt"], messages, strict=True)) if not p and not m]
    if raw:
        what = f"{len(raw)} example(s) are text without a question: {some(raw, lambda i: place(forget, i))}"
        fix = "split them into prompt and answer, or name a column with other texts in answers_column"
        raise BadInput(Problem("alternative answers", what, fix))
