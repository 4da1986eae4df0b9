"""Generic labels of a text: rows matched between it and its translation, and labels kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.language.anchors import Translation, translate
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded, prompt_of


@dataclass
class Facts:
    """What the labels are.

    Attributes:
        rows: answer rows of the forget set.
        changed: share of the labelled rows whose label is not what the model predicts there anyway.
        generic: rows with the generic label.
        repeated: rows within names that came before.
        masked: rows without a label: within names, behind the context limit, or the end of the text.
        anchors: terms in the dictionary.
    """

    rows: int = 0
    changed: float = 0.0
    generic: int = 0
    repeated: int = 0
    masked: int = 0
    anchors: int = 0


@dataclass(frozen=True)
class Aligned:
    """One example in both texts.

    Attributes:
        tokens: token ids of the translated text.
        rows: per answer row, the position in it that has read the same; -1 where there is none.
        repeated: per answer row, whether its next token belongs to a name that came before.
        seen: per answer row, the replacements of names that were seen before it.
    """

    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]
    repeated: NDArray[np.bool_]
    seen: Sequence[frozenset[str]]


def align(
    start: int,
    ends: Sequence[int],
    translated_tokens: Sequence[int],
    translated_ends: Sequence[int],
    translation: Translation,
    anchors: Mapping[str, str],
    length: int,
) -> Aligned:
    """Find for every answer row of the original text the row of the translated text that has read the same.

    By characters, because replacements change the number of tokens. A row within a name has no counterpart.

    Args:
        start: index of the first answer token.
        ends: per token of the original, the character where it ends.
        translated_tokens, translated_ends: the same of the translation.
        translation: where the names are in both.
        anchors: term -> replacement.
        length: tokens of the original with its end of sequence.
    """
    last = len(ends) - 1
    rows = np.full(length - start, -1, dtype=np.int64)
    repeated = np.zeros(length - start, dtype=bool)
    seen: list[frozenset[str]] = []
    for row, t in enumerate(range(start - 1, length - 1)):
        here, after = ends[min(t, last)], ends[min(t + 1, last)]
        inside = next((s for s in translation.spans if s.start < after and here < s.stop), None)
        repeated[row] = inside is not None and inside.repeated
        seen.append(frozenset(anchors[s.term] for s in translation.spans if s.start < here))
        place = translation.place(here)
        if place is not None:
            # Pieces of one character all end where it does: the same piece is as many before the last of them.
            pieces = int(np.searchsorted(ends, here, side="right")) - 1 - min(t, last)
            reached = int(np.searchsorted(translated_ends, place, side="right")) - 1 - pieces
            # Behind what was cut, or within a token of the other text, there is none.
            rows[row] = reached if reached >= 0 and translated_ends[reached] == place else -1
    return Aligned(np.asarray(translated_tokens, dtype=np.int64), rows, repeated, seen)


def align_example(
    model: CausalLM, row: Mapping[str, Any], encoded: Encoded, index: int, anchors: Mapping[str, str]
) -> Aligned:
    """Translate an example and match its answer rows.

    Args:
        model: has the tokenizer.
        row: the example.
        encoded: the encoded examples; ``index`` is the place of this one.
        index: see there.
        anchors: term -> replacement.
    """
    text, _, from_chat = model.encoder.render(prompt_of(row), row["answer"])
    translation = translate(text, anchors)
    length = encoded.length(index)
    _, ends = model.encoder.ends(text, from_chat)
    tokens, reached = model.encoder.ends(translation.text, from_chat)
    room = None if model.encoder.max_length is None else model.encoder.max_length - 1
    return align(encoded.starts[index], ends, tokens[:room], reached[:room], translation, anchors, length)


def openings_of(model: CausalLM, name: str) -> set[int]:
    """First tokens of a name, at the start of a text and behind a space."""
    return {model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (name, f" {name}")}


def translated_logits(base: CausalLM, plain: Tensor, aligned: Sequence[Aligned]) -> Tensor:
    """Logits of the base on the translated text, at the row that corresponds to each row of the original."""
    out = plain.clone()
    names = [str(k) for k in range(len(aligned))]
    known = [a.rows[a.rows >= 0] for a in aligned]
    chosen = [k for k, rows in enumerate(known) if len(rows)]
    if not chosen:
        return out
    texts = Encoded(
        [names[k] for k in chosen],
        [np.append(aligned[k].tokens, base.encoder.eos_id) for k in chosen],
        [int(known[k].min()) + 1 for k in chosen],
    )
    logits = base.statistics(texts).logits
    offsets = np.cumsum([0, *(texts.labelled(k) for k in range(len(texts)))])
    starts = np.cumsum([0, *(len(a.rows) for a in aligned)])
    for order, k in enumerate(chosen):
        where = np.flatnonzero(aligned[k].rows >= 0)
        source = offsets[order] + known[k] - (texts.starts[order] - 1)
        out[torch.from_numpy(starts[k] + where)] = logits[torch.from_numpy(source)]
    return out


def write_labels(file: Path, key: str, ids: Sequence[str], targets: Sequence[NDArray[np.int64]], facts: Facts) -> None:
    """Keep labels in a file, which is either complete or not there; ``key`` is what they depend on."""
    scratch = file.with_name(f"{file.name}.writing")
    metadata = {"key": key, "facts": json.dumps(asdict(facts))}
    save_file(dict(zip(ids, targets, strict=True)), scratch, metadata=metadata)
    os.replace(scratch, file)


def read_labels(file: Path, key: str, ids: Sequence[str]) -> tuple[list[NDArray[np.int64]], Facts] | None:
    """Read the labels of a run with this key, or None where there are none."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "np") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("key") != key:
                return None
            return [stored.get_tensor(i) for i in ids], Facts(**json.loads(metadata["facts"]))
    except Exception as error:
        raise BadInput(Problem(str(file), f"is damaged: {error}", "delete it; the labels are made anew")) from error
