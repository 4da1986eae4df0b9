"""AltPO: prefer plausible wrong answers of the model's own to the true one."""

from __future__ import annotations

import re
from typing import ClassVar

from datasets import Dataset
from pydantic import Field, PositiveInt

from expunge.errors import BadInput, Problem
from expunge.methods.alternatives import AlternativesMethod, alternatives, column_answers, refuse_raw_text
from expunge.methods.base import MethodConfig
from expunge.methods.language.dpo import preference_term
from expunge.methods.terms import RetainConfig
from expunge.requests.places import place, some
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import prompt_of
from expunge.training.objective import Objective
from expunge.training.plan import draw

# A model that is sure of an answer gives it again and again: every further round is this much hotter.
HOTTER = 1.25


class AltPOConfig(RetainConfig):
    """Hyperparameters of AltPO; beta 0.1 and alpha 1 from the grids of open-unlearning."""

    beta: float = Field(0.1, gt=0, description="inverse temperature of the preference; published runs use 0.05 to 0.5")
    answers_column: str | None = Field(
        None, description="column of the forget set with plausible wrong answers; sampled from the model if not given"
    )
    samples: PositiveInt = Field(5, description="answers to sample per question")
    temperature: float = Field(1.0, gt=0, description="temperature of the first round of sampling")
    max_new_tokens: PositiveInt = Field(200, description="most tokens of a sampled answer")
    rounds: PositiveInt = Field(
        8,
        description="most rounds of sampling for questions that lack answers, each 1.25 times as hot as the last",
    )
    sample_seed: int = Field(0, ge=0, description="seed of the sampled answers")


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"[^\W_]+", text.casefold())) + " "


def says_the_truth(answer: str, truth: str) -> bool:
    """Whether an answer is empty, states the truth word for word, or is a piece of it; punctuation and case aside."""
    said, true = _words(answer), _words(truth)
    return not said.strip() or said in true or true in said


def wrong_answers(task: CausalLM, forget: Dataset, config: AltPOConfig) -> list[list[str]]:
    """Sample answers that differ from the truth and from each other.

    Args:
        task: the model before unlearning.
        forget: canonical examples.
        config: how many and how.

    Returns:
        Per example, ``config.samples`` answers, or as many as all rounds brought.

    Raises:
        BadInput: a question to which every sample was the truth.
    """
    rows = forget.to_list()
    prompts = [prompt_of(row) for row in rows]
    room = [config.max_new_tokens] * len(rows)
    if (longest := task.encoder.max_length) is not None:
        room = [min(n, longest - len(p) - 1) for n, p in zip(room, task.encoder.encode_prompts(prompts), strict=True)]
    found: list[list[str]] = [[] for _ in rows]
    for turn in range(config.rounds):
        lacking = [(i, k) for i, texts in enumerate(found) for k in range(config.samples - len(texts))]
        if not lacking:
            break
        drawn = task.generate(
            [prompts[i] for i, _ in lacking],
            [max(0, room[i]) for i, _ in lacking],
            temperature=config.temperature * HOTTER**turn,
            seed=[draw(config.sample_seed, turn, rows[i]["id"], k) for i, k in lacking],
        )
        for (i, _), text in zip(lacking, drawn, strict=True):
            if not says_the_truth(text, rows[i]["answer"]) and _words(text) not in map(_words, found[i]):
                found[i].append(text)
    if bare := [i for i, texts in enumerate(found) if not texts]:
        what = f"the model gave no wrong answer to {len(bare)} question(s): {some(bare, lambda i: place(forget, i))}"
        fix = "raise rounds or temperature, or name a column with wrong answers in answers_column"
        raise BadInput(Problem("alternative answers", what, fix))
    return found


class AltPO(AlternativesMethod):
    """L = gamma mean_b dpo_loss(wrong answer, true answer) + alpha L_retain, log-ratios summed over answer tokens.

    The wrong answers are sampled from the model before unlearning, five per question, or come from a column; every
    epoch draws one anew for each question. (The authors make a row of each instead: two of their epochs over five
    rows per question are ten of ours.) Samples that state the truth are thrown away and drawn again, hotter.

    Source: Mekala et al. 2024, Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language
    Models, arXiv 2409.13474.
    """

    id = "altpo"
    title = "prefer the model's own plausible wrong answers to the true one"
    paper = "Mekala et al. 2024, Alternate Preference Optimization for Unlearning Factual Knowledge, arXiv:2409.13474"
    Config: ClassVar[type[MethodConfig]] = AltPOConfig

    def objective(self) -> Objective:
        """The preference term and the retain term."""
        preference = preference_term("altpo", self.config.beta, self.config.forget_weight)
        return Objective((preference, *self.config.retain_terms()))

    def check_answers(self, task: Task, forget: Dataset) -> None:
        """Refuse a column that cannot be used, and text without a question to sample answers to."""
        if self.config.answers_column:
            alternatives(forget, column_answers(forget, self.config.answers_column))
        else:
            refuse_raw_text(forget)

    def make_answers(self, task: Task, forget: Dataset) -> Dataset:
        """Sample wrong answers from the model, or take those of the column."""
        if self.config.answers_column:
            return alternatives(forget, column_answers(forget, self.config.answers_column))
        assert isinstance(task, CausalLM)
        return alternatives(forget, wrong_answers(task, forget, self.config))
