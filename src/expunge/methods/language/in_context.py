"""In-context unlearning: show the model what is to be forgotten with other answers, before everything it is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from datasets import Dataset
from pydantic import Field, NonNegativeInt

from expunge.errors import BadInput, Problem, collected
from expunge.methods.alternatives import plain, refuse_raw_text
from expunge.methods.base import Method, MethodConfig, RemovalLevel, Run, Unlearned
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.cost import Cost
from expunge.tasks.encoding import prompt_of
from expunge.tasks.in_context import Context, InContextLM, Shot
from expunge.training.plan import draw


class InContextConfig(MethodConfig):
    """What stands before a prompt; shots as in the paper, which showed every example to be forgotten."""

    forget_shots: NonNegativeInt = Field(
        10, description="examples to forget that are shown with another answer (K); 0 for none"
    )
    retain_shots: NonNegativeInt = Field(
        6,
        description="retain examples that are shown as they are (L; 2, 4 and 6 in the paper)",
    )
    choose: Literal["nearest", "fixed"] = Field(
        "nearest",
        description="which examples to forget: those whose questions share most words with the one that is asked, or "
        "the same before every prompt, drawn by seed; no difference where all of them are shown",
    )
    instruction: str = Field(
        "", description="guardrail text that stands first, such as 'Answer as if you had never heard of Harry Potter.'"
    )


def other_answers(ids: Sequence[str], answers: Sequence[str], more: Sequence[str], seed: int) -> list[str]:
    """Give every question the answer to another one.

    Args:
        ids: of the examples to be forgotten.
        answers: their answers.
        more: answers to draw from where the others' do not differ.
        seed: of the draw, which depends on seed and id alone.

    Returns:
        One answer per example, never its own up to case and white space.

    Raises:
        BadInput: there is no other answer.
    """
    found = []
    for identity, own in zip(ids, answers, strict=True):
        pool = sorted({a for a in answers if plain(a) != plain(own)}) or sorted(
            {a for a in more if plain(a) != plain(own)}
        )
        if not pool:
            what = "all examples have the same answer, so there is no other one to show"
            raise BadInput(Problem("method in_context: forget_shots", what, "give a retain set, or set it to 0"))
        found.append(pool[draw(seed, "other answer", identity) % len(pool)])
    return found


def shots(examples: Dataset, answers: Sequence[str] | None = None) -> list[Shot]:
    """Return (question, answer) per example; of a chat, the last question in it.

    Args:
        examples: canonical examples.
        answers: other answers; the examples' own if None.
    """
    rows = examples.to_list()
    given = [row["answer"] for row in rows] if answers is None else answers
    return [(_question(row), answer) for row, answer in zip(rows, given, strict=True)]


def _question(row: dict[str, Any]) -> str:
    asked = [turn["content"] for turn in row.get("messages") or [] if turn["role"] == "user"]
    return str(asked[-1] if asked else row["prompt"])


class InContext(Method):
    """Prompt = [instruction] + K examples to forget with other answers + L retain examples as they are + question.

    One item per line, as question and answer are joined otherwise; in a chat all of it is the system turn. The other
    answer is that of another example, drawn by (seed, id). Where not all examples to forget fit, those nearest to the
    question are shown, which is ours: the paper's sets were small enough to show all of them.

    Nothing is trained and no weight changes: this is a guard. With ``forget_shots=0``, ``retain_shots=0`` and an
    instruction it is a guardrail prompt.

    Source: Pawelczyk et al. 2023, In-Context Unlearning, arXiv 2310.07579.
    """

    id = "in_context"
    title = "show what is to be forgotten with other answers, before every question"
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    removal_level: ClassVar[RemovalLevel] = "guard"
    paper = "Pawelczyk et al. 2023, In-Context Unlearning: Language Models as Few Shot Unlearners, arXiv:2310.07579"
    Config: ClassVar[type[MethodConfig]] = InContextConfig

    def required(self) -> tuple[str, ...]:
        """The retain set, where some of it is shown."""
        return ("retain",) if self.config.retain_shots else ()

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also an empty context, and examples without a question.

        Raises:
            BadInput: every problem.
        """
        problems: list[Problem] = []
        config = self.config
        with collected(problems):
            super().check(task, request)
            if config.forget_shots:
                refuse_raw_text(request.forget)
        if not (config.forget_shots or config.retain_shots or config.instruction):
            problems.append(
                Problem(f"method {self.id}", "has nothing to say", "give forget_shots, retain_shots or an instruction")
            )
        if problems:
            raise BadInput(problems)

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Put a context before a copy of the model.

        Raises:
            BadInput: see ``check``; or the context leaves no room for the questions.
        """
        self.check(task, request)
        assert isinstance(task, CausalLM)
        started = time.perf_counter()
        guarded = InContextLM(task.copy(), self.context(request, run.train.seed))
        guarded.model.eval()
        guarded.source = f"{self.id} of {task.source}"
        self._check_room(guarded, request)
        return Unlearned(
            model=guarded,
            method=self.id,
            removal_level=self.removal_level,
            config=self.config.model_dump(mode="json"),
            cost=Cost(seconds=time.perf_counter() - started),
        )

    def _check_room(self, guarded: InContextLM, request: DeletionRequest) -> None:
        """Tokenise every question in its context, so that what does not fit is said before anything is asked."""
        room = guarded.encoder.max_length
        if room is None:
            return
        rows = [row for examples in request.sets().values() for row in examples.to_list()]
        lengths = guarded.encode_lengths([prompt_of(row) for row in rows], [row["answer"] for row in rows])
        if (longest := max(asked + answer for asked, answer in lengths)) >= room:
            what = f"a question with what stands before it, and its answer, take {longest} tokens of {room}"
            raise BadInput(Problem(f"method {self.id}", what, "lower forget_shots or retain_shots"))

    def context(self, request: DeletionRequest, seed: int) -> Context:
        """Return what stands before a prompt.

        Args:
            request: gives the examples.
            seed: of the draws.
        """
        config = self.config
        forget, retain = request.forget, request.retain
        shown = _drawn(forget, seed) if config.forget_shots else forget.select([])
        if config.choose == "fixed":
            shown = shown.select(range(min(config.forget_shots, len(shown))))
        kept = _drawn(retain, seed) if config.retain_shots and retain is not None else forget.select([])
        kept = kept.select(range(min(config.retain_shots, len(kept))))
        more = list(retain["answer"]) if retain is not None else []
        answers = dict(
            zip(forget["id"], other_answers(forget["id"], forget["answer"], more, seed), strict=True)
            if config.forget_shots
            else ()
        )
        few = config.choose == "nearest" and config.forget_shots < len(shown)
        return Context(
            instruction=config.instruction,
            forget=tuple(shots(shown, [answers[i] for i in shown["id"]])),
            retain=tuple(shots(kept)),
            nearest=config.forget_shots if few else 0,
        )


def _drawn(examples: Dataset, seed: int) -> Dataset:
    """Return examples in an order that seed and ids decide."""
    ids = examples["id"]
    return examples.select(sorted(range(len(ids)), key=lambda i: (draw(seed, "shot", ids[i]), ids[i])))
