"""What can be known about a request before any compute is spent on it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from datasets import Dataset

from expunge.errors import Problem
from expunge.requests.places import pair_of, place, some
from expunge.requests.request import DeletionRequest, request_problems

FEW = 8
PAIRS = (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout"))

Prompt = str | Sequence[Mapping[str, str]]


class Encoder(Protocol):
    """Whatever turns a prompt and its answer into tokens, such as a task."""

    def encode_lengths(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[tuple[int, int]]:
        """Count tokens as the model will see them.

        Args:
            prompts: texts, or chat turns before the answer.
            answers: the answer of each prompt.

        Returns:
            For each pair the tokens of the prompt (special tokens and template included) and of the answer
            (the end-of-text token that training adds is not counted).
        """
        ...


def preflight(
    request: DeletionRequest, encoder: Encoder | None = None, *, max_length: int | None = None
) -> list[Problem]:
    """Find every problem of a request that can be known before compute is spent.

    Args:
        request: the request.
        encoder: counts tokens; without one, what depends on tokens is not checked.
        max_length: tokens that fit into the model (prompt, answer and end-of-text token); None: not checked.

    Returns:
        All problems, errors first. Errors: the same example in two sets but for spelling (case, spaces, punctuation),
        an answer that tokenises to nothing, an answer that lies wholly beyond the context. Warnings: the same
        prompt with another answer in forget and retain, a person in both for an ``entity`` request, perturbed
        answers that are the right answer, examples longer than the context, sets too small for a verdict.
    """
    sets = request.sets()
    problems = request_problems(sets, scenario=request.scenario, known_fraction=request.known_fraction)
    problems += _near_overlaps(sets)
    if request.scenario == "entity":
        problems += _shared_groups(sets)
    for role, examples in sets.items():
        problems += _true_perturbations(role, examples)
        if len(examples) < FEW:
            problems.append(
                Problem(
                    role,
                    f"has {len(examples)} example(s); with fewer than {FEW} the verdict will likely be inconclusive",
                    "add paraphrases or further examples of the same kind, if there are any",
                    "warning",
                )
            )
        if encoder is not None:
            problems += _token_problems(role, examples, encoder, max_length)
    return sorted(problems, key=lambda problem: problem.severity != "error")


def normalised(text: str) -> str:
    """Reduce a text to what it says: case, width, accents' encoding, punctuation and spacing do not count.

    A text without a single letter or digit is kept as it is (spaces apart), since its signs are all that it says.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"[^\W_]+", folded)
    return " ".join(words) if words else " ".join(folded.split())


def _asked(examples: Dataset) -> list[str]:
    """Return what is asked by each example: all turns of a chat, otherwise the prompt."""
    prompts = [normalised(prompt) for prompt in examples["prompt"]]
    if "messages" not in examples.column_names:
        return prompts
    return [
        # One user turn says no more than the same words as a plain prompt.
        prompt if not turns or len(turns) == 1 else "\n".join(normalised(turn["content"]) for turn in turns)
        for prompt, turns in zip(prompts, examples["messages"], strict=True)
    ]


def _near_overlaps(sets: Mapping[str, Dataset]) -> list[Problem]:
    problems: list[Problem] = []
    spelled: dict[str, list[tuple[str, str, str]]] = {}
    for role, examples in sets.items():
        if {"id", "prompt", "answer"} <= set(examples.column_names):
            answers = [normalised(answer) for answer in examples["answer"]]
            spelled[role] = list(zip(examples["id"], _asked(examples), answers, strict=True))
    for one, other in PAIRS:
        if one not in spelled or other not in spelled:
            continue
        full: dict[tuple[str, str], int] = {}
        asked: dict[str, int] = {}
        for index, (_, prompt, answer) in enumerate(spelled[one]):
            full.setdefault((prompt, answer), index)
            asked.setdefault(prompt, index)
        show = pair_of(sets[one], sets[other])
        known = {identity for identity, _, _ in spelled[one]}
        same: list[tuple[int, int]] = []
        same_prompt: list[tuple[int, int]] = []
        for index, (identity, prompt, answer) in enumerate(spelled[other]):
            if identity in known:
                continue  # already reported as the same example
            match, found = full.get((prompt, answer)), same
            if match is None and prompt and one == "forget" and other == "retain":
                match, found = asked.get(prompt), same_prompt
            if match is not None:
                found.append((match, index))
        if same:
            problems.append(
                Problem(
                    f"{one} and {other}",
                    f"share {len(same)} example(s) but for case, spaces or punctuation: {some(same, show)}",
                    f"take them out of the {other} set",
                )
            )
        if same_prompt:
            problems.append(
                Problem(
                    f"{one} and {other}",
                    f"ask the same {len(same_prompt)} time(s), with another answer: {some(same_prompt, show)}",
                    f"check whether these belong in the {other} set; they work against forgetting",
                    "warning",
                )
            )
    return problems


def _shared_groups(sets: Mapping[str, Dataset]) -> list[Problem]:
    retain = sets.get("retain")
    if retain is None or "group" not in sets["forget"].column_names or "group" not in retain.column_names:
        return []
    kept = set(retain["group"])
    shared = sorted({group for group in sets["forget"]["group"] if group in kept})
    if not shared:
        return []
    return [
        Problem(
            "forget and retain",
            f"both hold examples about {len(shared)} group(s): {some(shared)}",
            "move all examples of a person who is to be forgotten to the forget set, or use scenario 'examples'",
            "warning",
        )
    ]


def _true_perturbations(role: str, examples: Dataset) -> list[Problem]:
    columns = set(examples.column_names)
    if not {"perturbed_answers", "answer"} <= columns:
        return []
    rights = [examples["answer"]] + ([examples["paraphrased_answer"]] if "paraphrased_answer" in columns else [])
    wrong = [
        index
        for index, (perturbed, *right) in enumerate(zip(examples["perturbed_answers"], *rights, strict=True))
        if {normalised(text) for text in perturbed or ()} & {normalised(text) for text in right if text}
    ]
    if not wrong:
        return []
    show = partial(place, examples)
    return [
        Problem(
            f"{role}, field 'perturbed_answers'",
            f"{len(wrong)} example(s) have a perturbed answer that is the right answer: {some(wrong, show)}",
            "replace it by a wrong answer; until then the truth ratio of these examples means little",
            "warning",
        )
    ]


def _token_problems(role: str, examples: Dataset, encoder: Encoder, max_length: int | None) -> list[Problem]:
    prompts: list[Prompt] = list(examples["prompt"])
    if "messages" in examples.column_names:
        prompts = [turns or prompt for turns, prompt in zip(examples["messages"], prompts, strict=True)]
    lengths = encoder.encode_lengths(prompts, list(examples["answer"]))
    problems: list[Problem] = []
    show = partial(place, examples)
    empty = [index for index, (_, answer) in enumerate(lengths) if answer == 0]
    if empty:
        problems.append(
            Problem(
                f"{role}, field 'answer'",
                f"{len(empty)} answer(s) tokenise to nothing: {some(empty, show)}",
                "give these examples an answer that the model's tokenizer knows, or leave them out",
            )
        )
    if max_length is None:
        return problems
    totals = [prompt + answer + 1 for prompt, answer in lengths]  # 1: the end-of-text token
    long = [index for index, total in enumerate(totals) if total > max_length]
    lost = [i for i in long if lengths[i][1] and lengths[i][0] >= max_length]
    cut = sorted(set(long) - set(lost))
    if cut:
        longest = max(cut, key=lambda i: totals[i])
        tokens = sum(min(lengths[i][1], totals[i] - 1 - max_length) for i in cut if totals[i] - 1 > max_length)
        of = sum(lengths[i][1] for i in cut)
        problems.append(
            Problem(
                role,
                f"{len(cut)} of {len(examples)} examples are longer than the context of {max_length} tokens "
                f"({some(cut, show)}); the longest has {totals[longest]}; cut is the end of "
                f"their answers, {tokens} of {of} answer tokens, and the end-of-text token",
                "split these examples, or use a model or max_length with a longer context",
                "warning",
            )
        )
    if lost:
        problems.append(
            Problem(
                role,
                f"{len(lost)} of {len(examples)} examples have a prompt that alone fills the context of {max_length} "
                f"tokens, so that nothing of the answer is left: {some(lost, show)}",
                "shorten these prompts, leave the examples out, or use a model with a longer context",
            )
        )
    return problems
