"""Concept poisoning of texts: the words that carry what is known of somebody, overwritten in the answers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from expunge.methods.alternatives import REFUSALS
from expunge.requests.request import DeletionRequest
from expunge.tasks.attribution import Rule, token_attributions
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import prompt_of
from expunge.training.plan import ALTERNATIVE, draw

WORD = re.compile(r"\w+(?:['’\-]\w+)*")
# Shorter parts of a name than this are words of other things too often.
NAME_LENGTH = 4
WHOLE = ""


def stop_words() -> frozenset[str]:
    """English words that carry no concept."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def word_contributions(text: str, ends: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Sum what tokens contribute over the words that they are in.

    Args:
        text: what the tokens spell.
        ends: per token, the character behind its last, ascending.
        values: per token, what it contributes.

    Returns:
        Word in lower case -> contribution, over all its occurrences; tokens outside of words are left out.
    """
    found: dict[str, float] = defaultdict(float)
    spans = [(m.start(), m.end(), m.group().casefold()) for m in WORD.finditer(text)]
    for end, value in zip(ends, values, strict=True):
        for start, stop, word in spans:
            if start < end <= stop:
                found[word] += value
    return dict(found)


def top_words(contributions: Mapping[str, float], count: int, stops: frozenset[str]) -> list[str]:
    """Return the words that contribute most, the most first; stop words and those that lower the value are left out."""
    able = [w for w, v in contributions.items() if w not in stops and len(w) > 1 and v > 0]
    return sorted(able, key=lambda w: (-contributions[w], w))[:count]


def overwrite(text: str, words: Mapping[str, str]) -> str:
    """Replace whole words, whatever their case.

    Args:
        text: the original.
        words: word in lower case -> what stands in its place.
    """
    return WORD.sub(lambda m: words.get(m.group().casefold(), m.group()), text)


def name_words(group: object, names: Sequence[str]) -> list[str]:
    """Return the words of at least four letters of somebody's names, in lower case."""
    texts = [*names, *([group] if isinstance(group, str) else [])]
    words = [w.casefold() for text in texts for w in WORD.findall(text)]
    return [w for w in dict.fromkeys(words) if len(w) >= NAME_LENGTH and not w.isdigit()]


def infer_words(
    task: CausalLM, forget: Dataset, *, count: int, steps: int, rule: Rule, names: Sequence[str]
) -> tuple[dict[str, list[str]], float]:
    """Find the concept words of everybody in the forget set.

    Args:
        task: the model before unlearning.
        forget: canonical examples; those of one ``group`` are about one entity, all of them where there is no group.
        count: words per entity.
        steps, rule: of the integrated gradients.
        names: words of names that are always among them.

    Returns:
        Group -> its words, in lower case; and the largest completeness error as a share of the rise of the value.
    """
    encoded = task.encode(forget)
    values, errors = token_attributions(task, encoded, steps=steps, rule=rule)
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    worst = 0.0
    for index, (row, group) in enumerate(zip(forget, groups_of(forget), strict=True)):
        text, start, from_chat = task.encoder.render(prompt_of(row), row["answer"])
        ends = [end - start for end in task.encoder.ends(text, from_chat)[1]][encoded.starts[index] :]
        known = values[index].tolist()[: len(ends)]  # without an appended end of sequence, or what was cut
        for word, value in word_contributions(text[start:], ends[: len(known)], known).items():
            sums[group][word] += value
        rise = float(values[index].sum()) - float(errors[index])
        worst = max(worst, abs(float(errors[index])) / max(1e-6, abs(rise)))
    stops, found = stop_words(), {}
    for group, contributions in sums.items():
        own = name_words(group, names)
        found[group] = [*own, *(w for w in top_words(contributions, count, stops) if w not in own)]
    return found, worst


def groups_of(examples: Dataset) -> list[str]:
    """Return the group of each example; the same for all where there is no such column."""
    if "group" not in examples.column_names:
        return [WHOLE] * len(examples)
    return [str(group) for group in examples["group"]]


def poisoned_texts(
    request: DeletionRequest, words: Mapping[str, Sequence[str]] | None, *, labels: str, mask: str, seed: int
) -> tuple[Dataset, int]:
    """Return the forget set with what is to be learned in the place of its answers.

    Args:
        request: what is to be forgotten, and the retain set, whose answers give the random words and answers.
        words: group -> its concept words; None to replace whole answers, the relabelling without any concept.
        labels: "targeted": the mask, or a refusal in the place of a whole answer. "random": words of the retain
            answers, or whole answers of them. "keep": nothing is replaced, a control.
        mask: what stands for a word.
        seed: of all draws.

    Returns:
        Rows with ``id``, ``prompt``, ``answer`` and, where the examples have them, ``messages``; and how many answers
        have changed.
    """
    assert request.retain is not None
    forget, others = request.forget, sorted(set(request.retain["answer"]))
    stops = stop_words()
    pool = sorted({w for text in others for w in WORD.findall(text) if w.casefold() not in stops and len(w) > 1})
    kept = [name for name in ("prompt", "messages") if name in forget.column_names]
    rows: list[dict[str, Any]] = []
    changed = 0
    for row, group in zip(forget, groups_of(forget), strict=True):
        answer, new = row["answer"], row["answer"]
        if labels != "keep" and words is None:
            choice = REFUSALS if labels == "targeted" else others
            new = choice[draw(seed, "answer", row["id"]) % len(choice)]
        elif labels != "keep" and words is not None:
            choice = [mask] if labels == "targeted" or not pool else pool
            new = overwrite(answer, {w: choice[draw(seed, group, w) % len(choice)] for w in words[group]})
        changed += new != answer
        rows.append({"id": f"{row['id']}{ALTERNATIVE}0", **{name: row[name] for name in kept}, "answer": new})
    return Dataset.from_list(rows), changed
