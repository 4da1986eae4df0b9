"""Teacher-forced scores of tokenised answers, where they begin alike in one go."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from expunge.tasks.blocks import ROUNDING, plain_model
from expunge.tasks.encoding import Encoded, collate, length_batches
from expunge.tasks.shared_prefixes import Tree, grow, lay_out
from expunge.tasks.statistics import token_statistics
from expunge.tasks.tokens import TokenScores

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Around = Callable[[Sequence[int]], AbstractContextManager[None]]

# Trees are laid out where they save at least this part of the work.
SAVED = 0.1
# By how much log-probabilities may differ from those of separate sequences in half precision; else ``ROUNDING``.
HALF_ROUNDING = 0.1


def score_each(task: CausalLM, encoded: Encoded, texts: Sequence[str], around: Around | None) -> list[TokenScores]:
    """Score every example as a sequence of its own, batched by length; see ``CausalLM.score_encoded``."""
    out: dict[int, TokenScores] = {}
    lengths = [encoded.length(i) for i in range(len(encoded))]
    for indices in length_batches(lengths, task.tokens_per_forward, overhead=task.tokens_per_call):
        batch = collate(encoded.take(indices), task.encoder.pad_id, task.device)
        with around(indices) if around else nullcontext():
            logits, _ = task._rows_of(batch, task.model, rows_only=around is None)
        columns = token_statistics(logits, batch.targets)
        bounds = np.cumsum([0, *batch.counts.tolist()])
        for k, index in enumerate(indices):
            out[index] = _scores(task, encoded, texts, index, columns[:, bounds[k] : bounds[k + 1]])
    return [out[index] for index in range(len(encoded))]


def score_trees(task: CausalLM, encoded: Encoded, texts: Sequence[str], trees: Sequence[Tree]) -> list[TokenScores]:
    """Score examples as trees of what they share; the same numbers up to rounding.

    Args:
        task: a model for which ``takes_trees`` holds.
        encoded, texts: the examples, whose targets are their answers.
        trees: these examples, from ``grow``.
    """
    out: dict[int, TokenScores] = {}
    dtype = next(task.model.parameters()).dtype
    sizes = [len(tree) for tree in trees]
    for chosen in length_batches(sizes, task.tokens_per_forward, overhead=task.tokens_per_call):
        batch, answers = lay_out(
            [trees[k] for k in chosen], encoded.starts, encoded.ids, task.encoder.pad_id, dtype, task.device
        )
        logits, _ = task._rows_of(batch, task.model, rows_only=True)
        columns = token_statistics(logits, batch.targets)
        for index, answer in answers.items():
            out[index] = _scores(task, encoded, texts, index, columns[:, answer])
    return [out[index] for index in range(len(encoded))]


def trees_of(task: CausalLM, encoded: Encoded) -> list[Tree] | None:
    """Return the examples as trees where that is worth it and the model takes them, else None."""
    if encoded.targets is not None or len(encoded) < 2 or task.takes_trees is False:
        return None
    lengths = [encoded.length(i) for i in range(len(encoded))]
    trees = _grow(task, encoded)
    if sum(_cost(task, len(tree)) for tree in trees) > (1 - SAVED) * sum(_cost(task, length) for length in lengths):
        return None
    if max(lengths) > _window(task):
        return None
    if task.takes_trees is None:
        task.takes_trees = _takes_trees(task, encoded, trees)
    return trees if task.takes_trees else None


def _grow(task: CausalLM, encoded: Encoded) -> list[Tree]:
    return grow(encoded.tokens, lambda tokens: _cost(task, tokens), task.tokens_per_forward)


def _cost(task: CausalLM, tokens: int) -> float:
    return task.operations.forward(tokens, tokens, 0)


def _window(task: CausalLM) -> float:
    """How far a token of this model looks back; with sliding windows, longer sequences are not their trees."""
    configs = [plain.config.get_text_config() for plain in _members(task)]
    windows = [getattr(c, name, None) for c in configs for name in ("sliding_window", "attention_window_size")]
    return min((float(w) for w in windows if isinstance(w, int) and w > 0), default=float("inf"))


def _members(task: CausalLM) -> list[Any]:
    """The transformers models that predict, several where they do so together."""
    members = task.model.members() if hasattr(task.model, "members") else [task.model]
    return [plain_model(member) for member in members]


def _takes_trees(task: CausalLM, encoded: Encoded, trees: Sequence[Tree]) -> bool:
    """Whether this architecture reads positions and a mask of its own as it should: tried on one tree, not assumed.

    Recurrent models, and those that derive positions from the order of tokens, do not.
    """
    for plain in _members(task):
        named = inspect.signature(type(plain).forward).parameters
        if "position_ids" not in named or getattr(plain, "_is_stateful", False):
            return False
        if getattr(plain.config.get_text_config(), "_attn_implementation", None) not in ("sdpa", "eager"):
            return False
    tree = min((tree for tree in trees if len(tree.paths) > 1), key=len)
    few = encoded.take(sorted(tree.paths))
    texts = [""] * len(few)
    try:
        together = score_trees(task, few, texts, _grow(task, few))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    apart = score_each(task, few, texts, None)
    allowed = ROUNDING.get(next(task.model.parameters()).dtype, HALF_ROUNDING)
    return all(_close(a.log_prob, b.log_prob, allowed) for a, b in zip(together, apart, strict=True))


def _close(one: NDArray[np.float64], other: NDArray[np.float64], allowed: float) -> bool:
    return bool(np.allclose(one, other, rtol=allowed, atol=allowed, equal_nan=True))


def _scores(task: CausalLM, encoded: Encoded, texts: Sequence[str], index: int, columns: Any) -> TokenScores:
    return TokenScores(
        log_prob=columns[0],
        mean_log_prob=columns[1],
        var_log_prob=columns[2],
        hit=columns[3].astype(bool),
        ends_with_eos=int(encoded.tokens[index][-1]) == task.encoder.eos_id,
        text=texts[index],
    )
