"""Random-label forgetting: train the questions of a task on labels that say nothing."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.alternatives import AlternativesMethod, column_answers, plain, refuse_raw_text
from expunge.methods.base import MethodConfig, Run
from expunge.methods.terms import RetainConfig, RetainLoss
from expunge.requests.places import place, some
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.examples import EncodedExamples, LabelledExamples
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.statistics import IGNORED
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.plan import ALTERNATIVE, draw

OPTIONS = "options"


class RandomLabelConfig(RetainConfig):
    """Hyperparameters of random-label forgetting. No retain set is needed."""

    options_column: str | None = Field(
        None,
        description="column with each question's options, of which the answer is one, by its letter or its text; "
        "'options' if there is one, otherwise all answers of the forget set are options of every question",
    )
    resample: Literal["once", "epoch"] = Field(
        "once", description="draw each label once and keep it, or anew in every epoch (a smoother, stronger target)"
    )
    exclude_true_label: bool | None = Field(
        None, description="never draw the true label; by default so for classifiers, and not for language models"
    )
    label_seed: int = Field(0, ge=0, description="seed of the labels that are drawn once; the example id is the rest")
    retain: RetainLoss = Field("none", description="loss on a retain set, if there is one: none, nll, or kl")


def random_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Per-token cross entropy ``-log softmax(z)[label]`` with the label that was drawn.

    Args:
        logits: (R, V).
        labels: (R,) int64 tokens of the drawn labels; -100 where there is none.

    Returns:
        (R,) losses in nats, 0 at rows without a label; their mean over the other rows is the objective. Over all K
        labels of one token it is, on average, the cross entropy to their uniform distribution.
    """
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


def draw_label(identity: str, options: int, seed: int, without: int | None = None) -> int:
    """Return a number below ``options``, uniform over seeds and ids, that depends on seed and id alone.

    Args:
        identity: example id.
        options: how many labels there are.
        seed: of the draw.
        without: a label that is never drawn.
    """
    if without is None:
        return draw(seed, "label", identity) % options
    drawn = draw(seed, "label", identity) % (options - 1)
    return drawn + (drawn >= without)


def wrong_classes(
    encoded: LabelledExamples, classes: int, resample: str, seed: int, *, exclude: bool = True
) -> LabelledExamples:
    """Pair every example with other classes: one each that is kept, or all of which every epoch draws one.

    Args:
        encoded: N examples with their true classes.
        classes: how many classes there are.
        resample: "once" or "epoch".
        seed: of labels that are drawn once.
        exclude: leave the true class out.

    Returns:
        The examples with ids ``<example id>#<class>``, as often as they have a class to meet.
    """
    rows: list[tuple[int, int]] = []
    for index, (identity, true) in enumerate(zip(encoded.ids, encoded.targets.tolist(), strict=True)):
        without = int(true) if exclude else None
        if resample == "once":
            rows.append((index, draw_label(identity, classes, seed, without)))
        else:
            rows += [(index, c) for c in range(classes) if c != without]
    chosen = encoded.take([index for index, _ in rows])
    ids = [f"{encoded.ids[index]}{ALTERNATIVE}{label}" for index, label in rows]
    return replace(chosen, ids=ids, targets=torch.tensor([label for _, label in rows]))


def label_options(forget: Dataset, column: str | None = None) -> list[list[str]]:
    """Return what each question may be answered with; the true answer is among it.

    Args:
        forget: canonical examples.
        column: the column with each question's options; "options" if it is there, or all answers of the set.

    Raises:
        BadInput: no such column, options that do not hold the answer, or nothing to choose among.
    """
    if column is None and OPTIONS in forget.column_names:
        column = OPTIONS
    if column is None:
        refuse_raw_text(forget)
        distinct = {plain(answer): answer for answer in sorted(forget["answer"], reverse=True)}
        shared = [distinct[key] for key in sorted(distinct)]
        if len(shared) < 2:
            fix = "name a column with the options of each question in options_column"
            raise BadInput(Problem("random labels", "all examples have one and the same answer", fix))
        return [shared] * len(forget)
    found, wrong = [], []
    for index, (answer, texts) in enumerate(zip(forget["answer"], column_answers(forget, column), strict=True)):
        options = _as_answered(answer, texts)
        if options is None:
            wrong.append(index)
        found.append(options or texts)
    if wrong:
        what = f"do not hold the answer of {len(wrong)} example(s): {some(wrong, lambda i: place(forget, i))}"
        fix = "give at least two different options, and as the answer the letter or the text of one"
        raise BadInput(Problem(f"column '{column}'", what, fix))
    return found


def _as_answered(answer: str, texts: Sequence[str]) -> list[str] | None:
    """The options in the form that the answer has: as texts, or as letters in the answer's own typography."""
    if len(set(texts)) < 2:
        return None
    options: dict[str, str] = {}
    for text in texts:
        options.setdefault(plain(text), text)
    if plain(answer) in options:
        # The answer as it is written, so that nothing but what is said tells the options apart.
        options[plain(answer)] = answer
        return list(options.values()) if len(options) > 1 else None
    bare = answer.strip(string.punctuation + string.whitespace)
    letters = string.ascii_uppercase[: len(texts)]
    if len(bare) == 1 and bare.upper() in letters:
        cased = letters if bare.isupper() else letters.lower()
        return [answer.replace(bare, letter, 1) for letter in cased]
    return None


def labelled_pool(forget: Dataset, options: Sequence[Sequence[str]], resample: str, seed: int) -> Dataset:
    """Pair the questions with labels: one each that is kept, or all of which every epoch draws one.

    Returns:
        Rows with ``id`` (``<example id>#<option>``), ``prompt``, ``answer`` and, where the examples have them,
        ``messages``.
    """
    names = [name for name in ("prompt", "messages") if name in forget.column_names]
    rows: list[dict[str, Any]] = []
    for row, labels in zip(forget, options, strict=True):
        chosen = range(len(labels)) if resample == "epoch" else [draw_label(row["id"], len(labels), seed)]
        asked = {name: row[name] for name in names}
        rows += [{"id": f"{row['id']}{ALTERNATIVE}{k}", **asked, "answer": labels[k]} for k in chosen]
    return Dataset.from_list(rows)


class RandomLabel(AlternativesMethod):
    """L = gamma CE(random label | question) + alpha L_retain, averaged over the label tokens of the step.

    Language models, multiple choice: the label is drawn uniformly among the options of the question, the true one
    included, as letters or as texts, whichever the answers are. Free form: among all different answers of the forget
    set. A label that is never the true one would tell something about it.

    Classifiers: the label is a class, drawn uniformly among the wrong ones; with ``exclude_true_label=false`` among
    all, as the code of SalUn and its kin does. Their published runs train on the retain set too: ``retain=nll``.

    Each example's label is drawn once and kept (``resample=once``), or in every epoch anew (``resample=epoch``), which
    amounts to a uniform target. Which share of the labels is true by chance is in the outcome's ``config["labels"]``;
    accuracy on the forget set says little as long as the random labels are not fitted.

    Source: Zhang et al. 2024, Unforgettable Generalization in Language Models, arXiv 2409.02228; for classifiers
    Golatkar et al. 2020 and the code of SalUn.
    """

    id = "random_label"
    title = "train the questions on labels drawn at random"
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm", *CLASSIFIERS)
    paper = "Zhang et al. 2024, Unforgettable Generalization in Language Models, arXiv:2409.02228"
    Config: ClassVar[type[MethodConfig]] = RandomLabelConfig

    def objective(self) -> Objective:
        """Cross entropy of the drawn labels, and a retain term if asked for."""
        labels = Term("random_label", ("alternative",), nll, "token_mean", self.config.forget_weight)
        return Objective((labels, *self.config.retain_terms()))

    def check_answers(self, task: Task, forget: Dataset) -> None:
        """Find the options once, to see that it can be done."""
        if task.kind == "causal_lm":
            self._options(forget)
        elif self.config.options_column is not None:
            what = f"is for language models; the labels of a {task.kind} are its classes"
            raise BadInput(Problem("options_column", what, "leave it out"))

    def make_answers(self, task: Task, forget: Dataset) -> Dataset:
        """Draw the labels of a language model."""
        return labelled_pool(forget, self._options(forget), self.config.resample, self.config.label_seed)

    def relabelled(self, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the forget set with the labels that were drawn; a classifier's examples are encoded once."""
        if model.kind == "causal_lm":
            run.notes["labels"] = self._facts(request.forget)
            return model.encode(self.make_answers(model, request.forget))
        config, classes = self.config, model.outcomes
        assert classes is not None
        exclude = config.exclude_true_label is not False
        run.notes["labels"] = {"options": [classes, classes], "true_by_chance": 0.0 if exclude else 1 / classes}
        encoded = model.encode(request.forget)
        assert isinstance(encoded, LabelledExamples)
        return wrong_classes(encoded, classes, config.resample, config.label_seed, exclude=exclude)

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the examples of a stream, and note how many of the labels are true by chance."""
        if stream == "alternative":
            return self.relabelled(model, request, run)
        return super().encode(stream, model, request, run)

    def _options(self, forget: Dataset) -> list[list[str]]:
        """What each question of a language model may be answered with."""
        options = label_options(forget, self.config.options_column)
        if not self.config.exclude_true_label:
            return options
        rows = zip(forget["answer"], options, strict=True)
        return [[label for label in labels if plain(label) != plain(answer)] for answer, labels in rows]

    def _facts(self, forget: Dataset) -> dict[str, Any]:
        options = self._options(forget)
        true = 0.0
        for row, labels in zip(forget, options, strict=True):
            hits = [plain(label) == plain(row["answer"]) for label in labels]
            once = self.config.resample == "once"
            true += hits[draw_label(row["id"], len(labels), self.config.label_seed)] if once else sum(hits) / len(hits)
        fewest, most = min(map(len, options)), max(map(len, options))
        return {"options": [fewest, most], "true_by_chance": true / len(options)}
