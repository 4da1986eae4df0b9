"""How many of the examples each slip of open-unlearning's metric code touches, counted on the data at hand.

Source: locuslab/open-unlearning (MIT) at d3d7cf9: the collator's mask and the prompt's length
(``open_unlearning_text.py``), and the loop of extraction strength, whose variable stays at the last token where no end
of the answer is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.benchmarks.open_unlearning_metrics import Scored
from expunge.benchmarks.open_unlearning_text import Template, TemplateEncoder, parity_tokens
from expunge.tasks.causal_lm import CausalLM


@dataclass(frozen=True)
class Effect:
    """One slip and what it touches.

    Attributes:
        name: short name.
        touched: examples that it changes something for.
        examples: examples looked at.
        says: what it does to them.
    """

    name: str
    touched: int
    examples: int
    says: str

    def __str__(self) -> str:
        return f"{self.touched} of {self.examples}: {self.says}"


def layout_effects(task: CausalLM, template: Template, pairs: Sequence[tuple[str, str]]) -> list[Effect]:
    """Count what their way of laying out (question, answer) pairs as tokens differs in from one without slips.

    Args:
        task: whose tokenizer is used; the model is not run.
        template: of the run.
        pairs: (question, answer).
    """
    ours = TemplateEncoder(task.tokenizer, template, task.encoder.max_length).encode(pairs)
    pad, hidden, unscored, nothing, behind = task.encoder.pad_id, 0, 0, 0, 0
    for k, (question, answer) in enumerate(pairs):
        ids, start = parity_tokens(task.tokenizer, template, question, answer)
        hidden += pad in ids[:-1]
        unscored += ours.starts[k] < start < len(ids)
        nothing += start >= len(ids)
        behind += len(ids) > len(ours.tokens[k])
    n = len(pairs)
    return [
        Effect("hidden tokens", hidden, n, "a token that equals the padding token, such as the end of a turn, is "
               "hidden from the model"),
        Effect("first token", unscored, n, "the prompt alone takes more tokens than in front of the answer, so the "
               "answer's first token is not scored"),
        Effect("no label", nothing, n, "no token of the answer is scored; its probability is NaN"),
        Effect("behind the answer", behind, n, "what the chat template writes behind the end of the turn is scored as "
               "part of the answer"),
    ]  # fmt: skip


def strength_effects(forget: Scored) -> list[Effect]:
    """Count where extraction strength is its floor of one over the number of tokens, and not 0.

    Args:
        forget: scores of the forget set's answers as they lay them out.
    """
    floor, single, raised = 0, 0, 0.0
    for scores in forget:
        m = 0 if scores is None else len(scores) - 1  # the last label is dropped there
        if scores is not None and m > 0 and not scores.hit[m - 1]:
            floor += 1
            single += m == 1
            raised += 1.0 / m
    n = len(forget)
    mean = raised / n if n else 0.0
    return [
        Effect("strength floor", floor, n, "not even the last token is guessed, and extraction strength counts 1 over "
               f"the number of tokens where 0 is true; that is {mean:.4f} of the mean"),
        Effect("one wrong token", single, n, "the answer has one token, it is guessed wrong, and extraction strength "
               "counts 1"),
    ]  # fmt: skip
