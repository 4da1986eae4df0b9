"""A language model that reads a context before every prompt: instructions, or examples with other answers.

It is asked, scored, copied, saved and loaded like any other causal language model, and the context stands before every
prompt and every running text that it is given. The weights are untouched: this is a guard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from expunge.errors import BadInput, Problem
from expunge.tasks.causal_lm import CausalLM, ChatMode, refuse_guarded
from expunge.tasks.encoding import Prompt, TextEncoder
from expunge.tasks.storage import CARD, SETTINGS, replacing, stored_settings

Shot = tuple[str, str]


@dataclass(frozen=True)
class Context:
    """What a model reads before every prompt.

    Attributes:
        instruction: stands first; "" for none.
        forget: (prompt, answer) of what is to be forgotten, the answer another one than the true one.
        retain: (prompt, answer) with true answers; they stand behind those.
        nearest: of ``forget``, show only so many, those whose prompts share most words with the one that is asked; 0
            shows all of them before every prompt.
    """

    instruction: str = ""
    forget: tuple[Shot, ...] = ()
    retain: tuple[Shot, ...] = ()
    nearest: int = 0

    def before(self, prompt: str, template: str) -> str:
        """Return the text that stands before a prompt, one item per line; "" where there is nothing to say.

        Args:
            prompt: what is asked.
            template: how prompt and answer of an example are joined, with ``{prompt}`` and ``{answer}``.
        """
        shown = nearest(prompt, self.forget, self.nearest) if self.nearest else self.forget
        examples = [template.replace("{prompt}", p).replace("{answer}", a) for p, a in (*shown, *self.retain)]
        return "\n".join([*([self.instruction] if self.instruction else []), *examples])


def nearest(prompt: str, shots: Sequence[Shot], count: int) -> list[Shot]:
    """Return the examples whose prompts share most words with a prompt (Jaccard index), the nearest last.

    Args:
        prompt: what is asked.
        shots: (prompt, answer).
        count: how many.
    """
    asked = _words(prompt)

    def shared(index: int) -> float:
        words = _words(shots[index][0])
        return len(asked & words) / max(1, len(asked | words))

    order = sorted(range(len(shots)), key=lambda k: (-shared(k), k))[:count]
    return [shots[k] for k in reversed(order)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


class ContextEncoder(TextEncoder):
    """A text encoder that puts a context before every prompt.

    In a chat it is the system turn, or the beginning of the first turn where the chat template has no such turn.

    Args:
        plain: the encoder of the model itself.
        context: what stands before.
    """

    def __init__(self, plain: TextEncoder, context: Context):
        super().__init__(plain.tokenizer, template=plain.template, chat=plain.chat, max_length=plain.max_length)
        self.context = context

    @property
    def lead(self) -> list[int]:
        """Tokens that stand before every running text."""
        text = self._before("")
        return list(self.tokenizer(text + "\n", add_special_tokens=False)["input_ids"]) if text else []

    def render(self, prompt: Prompt, answer: str) -> tuple[str, int, bool]:
        """Return the full text, the character where the answer starts, and whether a chat template made it."""
        return super().render(self.in_context(prompt), answer)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokenise what the model is asked to continue, without an answer."""
        return super().encode_prompts([self.in_context(prompt) for prompt in prompts])

    def in_context(self, prompt: Prompt) -> Prompt:
        """Return a prompt with the context before it."""
        if isinstance(prompt, str) and not (self.uses_chat and prompt):
            text = self._before(prompt)
            return f"{text}\n{prompt}" if text else prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        text = self._before(next((t["content"] for t in reversed(turns) if t["role"] == "user"), ""))
        if not text:
            return turns
        if turns[0]["role"] == "system":
            return [{"role": "system", "content": f"{text}\n{turns[0]['content']}"}, *turns[1:]]
        if self._has_system_turn():
            return [{"role": "system", "content": text}, *turns]
        return [{**turns[0], "content": f"{text}\n{turns[0]['content']}"}, *turns[1:]]

    def _before(self, prompt: str) -> str:
        return self.context.before(prompt, "{prompt} {answer}" if self.uses_chat else self.template)

    def _has_system_turn(self) -> bool:
        """Whether the chat template writes a system turn; some leave it out, some raise."""
        turns = [{"role": "system", "content": "expunge-probe"}, {"role": "user", "content": "x"}]
        try:
            return "expunge-probe" in self._chat(turns, generation=True)
        except Exception:
            return False


class InContextLM(CausalLM):
    """A language model that reads a context before everything that it is asked.

    The folder that ``save`` writes holds the model as the library itself would load it, and the context in
    ``expunge.json``. Loaded by the library alone it is the model without the context.

    Args:
        main: the model.
        context: what stands before every prompt.

    Raises:
        BadInput: the model is behind a guard already.
    """

    id: ClassVar[str] = "in_context_lm"
    removal_level: ClassVar[str] = "guard"
    note: ClassVar[str] = (
        "This folder holds a model and a context that stands before everything it is asked (in `expunge.json`). Plain "
        "`from_pretrained` loads the model as it was before, without the context. Load it with "
        "`expunge.load_task`, or name the folder wherever Expunge takes a model."
    )

    def __init__(self, main: CausalLM, context: Context):
        refuse_guarded(main)
        super().__init__(main.model, main.tokenizer, source=main.source)
        self.encoder: TextEncoder = ContextEncoder(main.encoder, context)
        self.context = context

    @property
    def base(self) -> CausalLM:
        """The model without the context."""
        plain = self.encoder
        return CausalLM(
            self.model,
            self.tokenizer,
            template=plain.template,
            chat=plain.chat,
            max_length=plain.max_length,
            source=self.source,
        )

    def fresh(self, seed: int) -> CausalLM:
        """Return the same architecture with new random weights, without the context: what never knew needs none."""
        return self.base.fresh(seed)

    def load_like(self, path: str | Path) -> CausalLM:
        """Load another checkpoint, without the context, to be used as this one is."""
        return self.base.load_like(path)

    def save(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write model and context into one folder, complete or not at all.

        Raises:
            BadInput: the disk has not enough room, or the folder holds something that is not a model.
        """
        folder = Path(folder)
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return
        stored = {"task": self.id, "note": self.note, "context": asdict(self.context)}
        with replacing(folder, self.model.parameters()) as scratch:
            self.base.save(scratch, {**stored, **(metadata or {})})
            (scratch / CARD).write_text(f"# A model behind a context\n\n{self.note}\n", encoding="utf-8")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        template: str | None = None,
        chat: ChatMode | None = None,
        max_length: int | None = None,
    ) -> InContextLM:
        """Load a folder that ``save`` wrote.

        Raises:
            BadInput: the model cannot be loaded, or its context is damaged.
        """
        main = CausalLM.read(path, dtype=dtype, device=device, template=template, chat=chat, max_length=max_length)
        return cls(main, _stored_context(Path(path)))


def _stored_context(folder: Path) -> Context:
    try:
        given: Mapping[str, Any] = stored_settings(folder)["context"]
        shots = {name: tuple(_shots(given[name])) for name in ("forget", "retain")}
        return Context(str(given["instruction"]), shots["forget"], shots["retain"], int(given["nearest"]))
    except (KeyError, TypeError, ValueError) as error:
        what = f"does not say what stands before a prompt ({type(error).__name__}: {error})"
        raise BadInput(Problem(str(folder / SETTINGS), what, "take it from the run that made it")) from error


def _shots(rows: Iterable[Sequence[str]]) -> Iterable[Shot]:
    for prompt, answer in rows:
        yield str(prompt), str(answer)
