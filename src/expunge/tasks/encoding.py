"""From text to tokens, once: where the answer starts, what is trained, how a batch is laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expunge.errors import BadInput, Problem
from expunge.tasks.examples import EncodedExamples, Positions
from expunge.tasks.statistics import IGNORED

Prompt = str | Sequence[Mapping[str, str]]


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """Return what the model is asked in an example row: its chat turns if it has any, else the prompt text."""
    messages = row.get("messages")
    return messages if messages else row["prompt"]


@dataclass(frozen=True)
class Encoded(EncodedExamples):
    """Tokenised examples.

    Attributes:
        ids: example ids.
        tokens: per example, (T,) int64 token ids, end of sequence included.
        starts: per example, index of the first answer token; at least 1, because the first token is never predicted.
        targets: per example, (T - start,) int64 what is to be predicted in place of each answer token, -100 for
            nothing; None where it is the answer tokens themselves.
    """

    ids: Sequence[str]
    tokens: Sequence[NDArray[np.int64]]
    starts: Sequence[int]
    targets: Sequence[NDArray[np.int64]] | None = None

    def length(self, index: int) -> int:
        """Number of tokens of an example."""
        return len(self.tokens[index])

    def labelled(self, index: int) -> int:
        """Number of trained answer tokens of an example."""
        if self.targets is not None:
            return int((self.targets[index] != IGNORED).sum())
        return len(self.tokens[index]) - self.starts[index]

    def rows(self, indices: Sequence[int], positions: Positions) -> int:
        """Rows that ``collate`` reads of a batch of these examples."""
        if positions == "all":
            return len(indices) * max((self.length(i) for i in indices), default=0)
        return sum(self.length(i) if positions == "attended" else self.labelled(i) for i in indices)

    def content(self, index: int) -> bytes:
        """Where the answer starts, the tokens, and what is to be predicted if it is not these."""
        other = b"" if self.targets is None else self.targets[index].tobytes()
        return f"{self.starts[index]} ".encode() + self.tokens[index].tobytes() + other

    def target(self, index: int) -> NDArray[np.int64]:
        """What is to be predicted at the answer rows of an example, (T - start,)."""
        return self.tokens[index][self.starts[index] :] if self.targets is None else self.targets[index]

    def take(self, indices: Sequence[int]) -> Encoded:
        """Return the examples at these indices, in this order."""
        return Encoded(
            [self.ids[i] for i in indices],
            [self.tokens[i] for i in indices],
            [self.starts[i] for i in indices],
            None if self.targets is None else [self.targets[i] for i in indices],
        )

    def __add__(self, other: Encoded) -> Encoded:
        targets = None
        if self.targets is not None or other.targets is not None:
            targets = [part.target(i) for part in (self, other) for i in range(len(part))]
        return Encoded([*self.ids, *other.ids], [*self.tokens, *other.tokens], [*self.starts, *other.starts], targets)


@dataclass(frozen=True)
class Batch:
    """A right-padded batch and the rows of it that are read.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) int64, or None where causality alone already hides the padding from every row read;
            (B, 1, T, T) to be added to attention scores where rows are trees (``shared_prefixes.py``).
        rows: (R,) int64, flat positions ``b * T + t`` whose prediction is read.
        targets: (R,) int64, the token at ``t + 1``, or -100 where it is not an answer token.
        example: (R,) int64.
        counts: (B,) int64, labelled rows per example.
        ids: example ids.
        real_tokens: tokens that are not padding.
        position_ids: (B, T) int64 where they are not those of the columns.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    rows: Tensor
    targets: Tensor
    example: Tensor
    counts: Tensor
    ids: Sequence[str]
    real_tokens: int
    position_ids: Tensor | None = None


def collate(encoded: Encoded, pad_id: int, device: torch.device, positions: Positions = "answer") -> Batch:
    """Lay examples out as one right-padded batch.

    Padding is known from lengths, never from token ids, so an end-of-sequence token that doubles as padding is safe.

    Args:
        encoded: the examples of the batch.
        pad_id: token to fill with.
        device: where the tensors go.
        positions: which rows are read: those that predict an answer token, those of the answer tokens themselves, all
            real tokens, or all B * T positions (the last three only for terms that are defined that way).
    """
    lengths = [len(tokens) for tokens in encoded.tokens]
    width = max(lengths)
    grid = np.full((len(encoded), width), pad_id, dtype=np.int64)
    for b, tokens in enumerate(encoded.tokens):
        grid[b, : lengths[b]] = tokens
    rows, targets, example = [], [], []
    for b, start in enumerate(encoded.starts):
        first, last = {
            "answer": (start - 1, lengths[b] - 1),
            "label": (start, lengths[b]),
            "attended": (0, lengths[b]),
            "all": (0, width),
        }[positions]
        rows.append(np.arange(first, last) + b * width)
        target = np.full(last - first, IGNORED, dtype=np.int64)
        labelled = max(first, start - 1)
        target[labelled - first : lengths[b] - 1 - first] = encoded.target(b)[labelled + 1 - start :]
        targets.append(target)
        example.append(np.full(last - first, b, dtype=np.int64))
    mask = None
    if positions == "all" and min(lengths) < width:
        mask = torch.from_numpy((np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)).to(device)
    return Batch(
        input_ids=torch.from_numpy(grid).to(device),
        attention_mask=mask,
        rows=torch.from_numpy(np.concatenate(rows)).to(device),
        targets=torch.from_numpy(np.concatenate(targets)).to(device),
        example=torch.from_numpy(np.concatenate(example)).to(device),
        counts=torch.tensor([encoded.labelled(b) for b in range(len(encoded))], device=device),
        ids=encoded.ids,
        real_tokens=sum(lengths),
    )


def length_batches(
    lengths: Sequence[int], tokens: int | None, *, overhead: int | None = None, most: int | None = None
) -> list[list[int]]:
    """Group examples of similar length into batches, longest first.

    Args:
        lengths: tokens of each example.
        tokens: padded tokens that a batch of more than one example may have; None for no limit.
        overhead: what a further batch costs, in tokens; None for as few batches as can be.
        most: examples that a batch may have.

    Returns:
        Indices. With an overhead, of all ways to cut the sorted examples one with the least
        ``sum_k (longest of k * size of k + overhead)``.
    """
    ordered = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    longest = [lengths[i] for i in ordered]
    size = len(ordered) if most is None else most
    padded = math.inf if tokens is None else tokens
    # Where the batch that ends before ``end`` may begin; further on it may begin anywhere.
    begins, begin = [], 0
    for end in range(1, len(ordered) + 1):
        while begin < end - 1 and (end - begin > size or (end - begin) * longest[begin] > padded):
            begin = end - 1 if overhead is None else begin + 1
        begins.append(begin)
    cuts = begins if overhead is None else _least_padding(np.array(longest), begins, overhead)
    batches: list[list[int]] = []
    end = len(ordered)
    while end:
        batches.append(ordered[cuts[end - 1] : end])
        end = cuts[end - 1]
    return batches[::-1]


def _least_padding(longest: NDArray[np.int64], begins: Sequence[int], overhead: int) -> list[int]:
    """Return where the last batch begins that ends with each of the examples, so that all cost least."""
    best, cuts = np.zeros(len(longest) + 1), []
    for end, begin in enumerate(begins, 1):
        starts = np.arange(begin, end)
        costs = best[starts] + longest[starts] * (end - starts) + overhead
        cuts.append(int(starts[costs.argmin()]))
        best[end] = costs.min()
    return cuts


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def _is_begun(messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether the last turn is the beginning of an answer."""
    return bool(messages) and messages[-1]["role"] == "assistant"


class TextEncoder:
    """Turns (prompt, answer) pairs into tokens, and prompts into what a model is asked to continue.

    Args:
        tokenizer: any transformers tokenizer.
        template: how prompt and answer are joined when no chat template is used; ``{answer}`` comes last.
        chat: "auto" uses the tokenizer's chat template if it has one, "always" insists on it, "never" ignores it.
            Examples given as chat messages always need it. Messages that end with a turn of the assistant are an answer
            that was begun, which the model goes on with.
        max_length: longer examples are cut at the end; None for no limit.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = "{prompt} {answer}",
        chat: Literal["auto", "always", "never"] = "auto",
        max_length: int | None = None,
    ):
        if "{prompt}" not in template or not template.endswith("{answer}"):
            raise BadInput(Problem("template", f"is {template!r}", "name {prompt} and end with {answer}"))
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if chat == "always" and not has_template:
            raise BadInput(Problem("chat", "the tokenizer has no chat template", "use chat=never or set one"))
        self.tokenizer, self.template, self.chat, self.max_length = tokenizer, template, chat, max_length
        self.uses_chat = has_template and chat != "never"
        if tokenizer.eos_token_id is None:
            raise BadInput(Problem("tokenizer", "has no end-of-sequence token", "set tokenizer.eos_token"))
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id

    @property
    def lead(self) -> list[int]:
        """Tokens that the model reads before any running text, apart from what begins a sequence."""
        return []

    def render(self, prompt: Prompt, answer: str) -> tuple[str, int, bool]:
        """Return the full text, the character where the answer starts, and whether a chat template made it.

        Raises:
            BadInput: chat messages without a chat template, or one that changes the answer.
        """
        if not isinstance(prompt, str) or (self.uses_chat and prompt):
            messages = _turns(prompt)
            if not getattr(self.tokenizer, "chat_template", None):
                raise BadInput(
                    Problem("messages", "the tokenizer has no chat template", "give prompt and answer columns")
                )
            begun = messages[-1]["content"].rstrip(" ") if _is_begun(messages) else ""
            glue = " " if begun and not (begun[-1].isspace() or answer[:1].isspace()) else ""
            asked_turns = messages[:-1] if _is_begun(messages) else messages
            told = {"role": "assistant", "content": begun + glue + answer}
            full = self._chat([*asked_turns, told], generation=False).rstrip()
            asked = self._asked(messages) + glue
            start = len(asked) if full.startswith(asked) else full.rfind(answer.strip())
            if start < 0:
                what = f"does not write the answer {answer.strip()!r:.60} as it is, so it is not known what to train on"
                raise BadInput(Problem("chat template", what, "use a template that does, or chat=never"))
            return full, start, True
        if not prompt:
            return answer, 0, False
        # The space that joins them is the answer's, as it is where a model is asked: see ``encode_prompts``.
        head = self._head(prompt, answer)
        return head + answer, len(head.rstrip(" ")), False

    def _head(self, prompt: str, answer: str) -> str:
        head = self.template.removesuffix("{answer}").replace("{prompt}", prompt)
        # Text that already carries its own separator (prompt/completion files) is joined as it is.
        if self.template == "{prompt} {answer}" and (prompt[-1:].isspace() or answer[:1].isspace()):
            return prompt
        return head

    def _asked(self, messages: list[dict[str, str]]) -> str:
        """What the model is asked to continue: an answer of its own, or the one that was begun for it."""
        if _is_begun(messages):
            begun = self.tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
            return str(begun).rstrip(" ")
        return self._chat(messages, generation=True)

    def _chat(self, messages: list[dict[str, str]], *, generation: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))

    def encode(self, pairs: Sequence[tuple[Prompt, str]], ids: Sequence[str] | None = None) -> Encoded:
        """Tokenise pairs.

        The answer starts at the first token that reaches past the prompt's last character, found by character
        offsets; a tokenizer without offsets falls back to tokenising the prompt alone. An end-of-sequence token is
        appended and is a label.

        Args:
            pairs: (prompt, answer); an empty prompt means raw text, trained from its second token.
            ids: one id per pair; numbered if left out.

        Raises:
            BadInput: an answer that has no token to train on; every such example is named.
        """
        names = [str(i) for i in range(len(pairs))] if ids is None else list(ids)
        tokens, starts, problems = [], [], []
        rendered = [self.render(prompt, answer) for prompt, answer in pairs]
        for name, (_, answer), row in zip(names, pairs, self._tokenise(rendered), strict=True):
            encoded, first = row
            empty = self._answer_tokens(answer, encoded, first) == 0
            if not encoded or encoded[-1] != self.eos_id:
                encoded = [*encoded, self.eos_id]
            encoded = encoded[: self.max_length]
            first = max(first, 1)
            # An answer of nothing, or a prompt that fills the context, leaves nothing to learn.
            if empty or len(encoded) <= first:
                why = "its answer has no tokens" if empty else "its prompt fills the whole context"
                problems.append(Problem(f"example {name}", why, "shorten the prompt, raise max_length or drop it"))
            tokens.append(np.asarray(encoded, dtype=np.int64))
            starts.append(first)
        if problems:
            raise BadInput(problems)
        return Encoded(names, tokens, starts)

    def _tokenise(self, rendered: Sequence[tuple[str, int, bool]]) -> list[tuple[list[int], int]]:
        out: list[tuple[list[int], int] | None] = [None] * len(rendered)
        for from_chat in (False, True):
            where = [i for i, r in enumerate(rendered) if r[2] is from_chat]
            if not where:
                continue
            # A rendered chat already holds its special tokens.
            options = {"add_special_tokens": not from_chat, "return_attention_mask": False}
            texts = [rendered[i][0] for i in where]
            if self.tokenizer.is_fast:
                both = self.tokenizer(texts, return_offsets_mapping=True, **options)
                for i, row, offsets in zip(where, both["input_ids"], both["offset_mapping"], strict=True):
                    start = rendered[i][1]
                    first = next((t for t, (a, b) in enumerate(offsets) if b > start and b > a), len(row))
                    out[i] = (list(row), first)
            else:
                rows = self.tokenizer(texts, **options)["input_ids"]
                heads = self.tokenizer([rendered[i][0][: rendered[i][1]] or " " for i in where], **options)["input_ids"]
                for i, row, head in zip(where, rows, heads, strict=True):
                    # Some tokenizers close every text; what goes on is not closed there.
                    closed = len(head) > 1 and head[-1] == self.eos_id
                    out[i] = (list(row), len(head) - closed if rendered[i][1] else 0)
        return [o for o in out if o is not None]

    def ends(self, text: str, from_chat: bool) -> tuple[list[int], list[int]]:
        """Tokenise a rendered text as ``encode`` does, with the character behind each token's last.

        Args:
            text: the full text, see ``render``.
            from_chat: whether a chat template made it.

        Returns:
            Token ids without an appended end of sequence, and per token where it ends; a special token that stands for
            no character ends where the one before it does.

        Raises:
            BadInput: the tokenizer knows no offsets.
        """
        if not self.tokenizer.is_fast:
            raise BadInput(Problem("tokenizer", "has no character offsets", "use its fast version"))
        both = self.tokenizer(text, add_special_tokens=not from_chat, return_offsets_mapping=True)
        ends = np.maximum.accumulate([0, *(stop for _, stop in both["offset_mapping"])])[1:]
        return list(both["input_ids"]), [int(end) for end in ends]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokenise what the model is asked to continue, without an answer.

        A trailing space is cut because the tokenizers of today attach it to the first word of the answer.
        """
        chats = [not isinstance(prompt, str) or bool(self.uses_chat and prompt) for prompt in prompts]
        rows: list[list[int]] = [[] for _ in prompts]
        for chat in (False, True):
            where = [k for k, is_chat in enumerate(chats) if is_chat == chat]
            texts = [
                self._asked(_turns(p)) if chat else self._head(str(p), "x").rstrip(" ") if p else ""
                for p in (prompts[k] for k in where)
            ]
            found = self.tokenizer(texts, add_special_tokens=not chat)["input_ids"] if texts else []
            for k, row in zip(where, found, strict=True):
                # Some tokenizers close every text; a prompt must stay open.
                rows[k] = list(row[:-1] if len(row) > 1 and row[-1] == self.eos_id else row)
        return [row or [self.tokenizer.bos_token_id or self.eos_id] for row in rows]

    def encode_lengths(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[tuple[int, int]]:
        """Return (prompt tokens, answer tokens) per pair before any cutting; the end of sequence is not counted."""
        rendered = [self.render(p, a) for p, a in zip(prompts, answers, strict=True)]
        return [
            (first, self._answer_tokens(answer, row, first))
            for answer, (row, first) in zip(answers, self._tokenise(rendered), strict=True)
        ]

    def after_question(self, pairs: Sequence[tuple[Prompt, str]]) -> list[int]:
        """Return per pair the index of the first token behind the question; what a chat template adds comes later."""
        places = []
        for prompt, answer in pairs:
            text, start, from_chat = self.render(prompt, answer)
            asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
            found = text.rfind(asked, 0, start) if asked.strip() else -1
            places.append((text, found + len(asked) if found >= 0 else start, from_chat))
        return [first for _, first in self._tokenise(places)]

    def _answer_tokens(self, answer: str, row: list[int], first: int) -> int:
        """Tokens from the answer's start on; one end of sequence that a chat template wrote is not counted."""
        if not answer.strip():
            return 0
        return len(row) - first - int(len(row) > first and row[-1] == self.eos_id)
