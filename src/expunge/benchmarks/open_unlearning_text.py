"""How open-unlearning turns questions into tokens, scores answers and generates, and the same without its slips.

Source: locuslab/open-unlearning (MIT), ``src/data/utils.py``, ``src/data/collators.py`` and ``src/evals/metrics/
utils.py`` at d3d7cf9. Three things of it change numbers and are left out of our side: the attention mask hides every
token that equals the padding token, so with padding by the end of sequence each turn's end in a chat; the prompt's
length is that of the prompt tokenised alone, so where a text prompt ends with a space the first token of the answer is
not scored, and generation starts from a space that training never showed alone; and what a chat template writes behind
the last end of turn is scored as part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.errors import BadInput, Problem
from expunge.registry import near_names
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded, Prompt, TextEncoder
from expunge.tasks.storage import stored_settings
from expunge.tasks.tokens import TokenScores

LONGEST = 512  # tokens of prompt and answer in text templates; chats are not cut
RUNNING = 2048  # tokens of running text behind its beginning
NEW_TOKENS = 200
BATCH = 32
# Solved (question, answer) pairs that are shown before a question.
Shots = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Template:
    """How a question is put, by the names that open-unlearning's model configs use.

    Attributes:
        apply_chat_template: whether the tokenizer's chat template is used; the tags are for text otherwise.
        system_prompt: first turn of a chat.
        date_string: what the chat template is told of today.
        system_prompt_with_special_tokens: what text begins with.
        user_start_tag, user_end_tag, asst_start_tag, asst_end_tag: around question and answer in text.
    """

    apply_chat_template: bool = False
    system_prompt: str | None = None
    date_string: str | None = None
    system_prompt_with_special_tokens: str | None = None
    user_start_tag: str = "Question: "
    user_end_tag: str = "\n"
    asst_start_tag: str = "Answer: "
    asst_end_tag: str = "\n\n"

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Template:
        """Read ``template_args`` of a config.

        Raises:
            BadInput: no mapping, an unknown key, or values of the wrong kind; all of them.
        """
        if not isinstance(given, Mapping):
            raise BadInput(Problem(where, "template_args is no mapping", "give the model config of the run"))
        known = {f.name for f in fields(cls)}
        problems = [
            Problem(f"{where}: template_args", f"'{key}' is not known", near_names(str(key), sorted(known)))
            for key in given
            if key not in known
        ]
        for key, value in given.items():
            kind: Any = bool if key == "apply_chat_template" else (str, type(None))
            if key in known and not isinstance(value, kind):
                what = f"'{key}' is {value!r}"
                problems.append(
                    Problem(f"{where}: template_args", what, "give true or false" if kind is bool else "give a text")
                )
        if problems:
            raise BadInput(problems)
        return cls(**dict(given))

    def turns(self, question: str, shots: Shots = ()) -> list[dict[str, str]]:
        """The turns before the answer."""
        said = [("system", self.system_prompt)] if self.system_prompt else []
        for asked, answer in shots:
            said += [("user", asked), ("assistant", answer)]
        return [{"role": role, "content": content} for role, content in [*said, ("user", question)]]

    def text(self, question: str, shots: Shots = ()) -> str:
        """Everything before the answer, for models without a chat template."""
        before, between = self.user_start_tag, f"{self.user_end_tag}{self.asst_start_tag}"
        solved = "".join(f"{before}{asked}{between}{answer}{self.asst_end_tag}" for asked, answer in shots)
        return f"{self.system_prompt_with_special_tokens or ''}{solved}{before}{question}{between}"

    def options(self) -> dict[str, str]:
        """What else the chat template is told."""
        return {} if self.date_string is None else {"date_string": self.date_string}


def default_template(task: CausalLM) -> Template:
    """Return what a model is asked with where no config says.

    That is its own chat template; what Expunge stored beside it when it wrote it; or the tags of their base models.
    """
    if getattr(task.tokenizer, "chat_template", None) and task.encoder.uses_chat:
        return Template(apply_chat_template=True)
    stored = stored_settings(Path(task.source)).get("template")
    if not isinstance(stored, str):
        return Template()
    before, _, after = stored.partition("{prompt}")
    return Template(user_start_tag=before, user_end_tag=after.removesuffix("{answer}"), asst_start_tag="")


class TemplateEncoder(TextEncoder):
    """Our encoder over their template: same words, answers found by characters, nothing hidden.

    Args:
        tokenizer: of the model.
        template: of the run.
        max_length: longest example in tokens.

    Raises:
        BadInput: a chat template is asked for and the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, template: Template, max_length: int | None = None):
        super().__init__(tokenizer, chat="always" if template.apply_chat_template else "never", max_length=max_length)
        self.asked_with = template

    def render(self, prompt: Prompt, answer: str) -> tuple[str, int, bool]:
        assert isinstance(prompt, str)
        if not self.asked_with.apply_chat_template:
            head = self.asked_with.text(prompt)
            return head + answer, len(head), False
        turns = self.asked_with.turns(prompt)
        asked = self._said(turns, True)
        full = self._said([*turns, {"role": "assistant", "content": answer}], False).rstrip()
        return full, len(asked) if full.startswith(asked) else full.rfind(answer.strip()), True

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        out = []
        for prompt in prompts:
            assert isinstance(prompt, str)
            chat = self.asked_with.apply_chat_template
            text = self._said(self.asked_with.turns(prompt), True) if chat else self.asked_with.text(prompt).rstrip(" ")
            row = list(self.tokenizer(text, add_special_tokens=not chat)["input_ids"])
            out.append(row[:-1] if not chat and row and row[-1] == self.eos_id else row)
        return out

    def _said(self, turns: Sequence[Mapping[str, str]], generation: bool) -> str:
        more = self.asked_with.options()
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **more))


def parity_tokens(
    tokenizer: Any, template: Template, question: str, answer: str, shots: Shots = ()
) -> tuple[list[int], int]:
    """Tokenise a question with an answer as open-unlearning does.

    Args:
        tokenizer: of the model.
        template: of the run.
        question, answer: of the example.
        shots: solved questions before it.

    Returns:
        Token ids, and how many of them carry no label. Where that is all of them there is nothing to score.
    """
    if template.apply_chat_template:
        told = [*template.turns(question, shots), {"role": "assistant", "content": answer}]
        full = _chat_tokens(tokenizer, told, False, template)
    else:
        full = _text_tokens(tokenizer, template.text(question, shots) + answer)
    if full[-1] != tokenizer.eos_token_id:
        full.append(tokenizer.eos_token_id)
    return full, len(_prompt_tokens(tokenizer, template, question, shots))


def running_tokens(tokenizer: Any, text: str, beginning: str = "") -> tuple[list[int], int]:
    """Tokenise running text as open-unlearning does: a space behind the beginning, nothing appended.

    Args:
        tokenizer: of the model.
        text: what is scored, cut to 2048 tokens.
        beginning: what stands before it.

    Returns:
        As ``parity_tokens``; the very first token never carries a label.
    """
    before = list(tokenizer(beginning)["input_ids"])
    full = list(tokenizer(f"{beginning} {text}" if beginning else text)["input_ids"])
    return full[: len(before) + RUNNING], max(1, len(before))


def _prompt_tokens(tokenizer: Any, template: Template, question: str, shots: Shots = ()) -> list[int]:
    if template.apply_chat_template:
        return _chat_tokens(tokenizer, template.turns(question, shots), True, template)
    return _text_tokens(tokenizer, template.text(question, shots))


def _text_tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, max_length=LONGEST, truncation=True)["input_ids"])


def _chat_tokens(tokenizer: Any, turns: list[dict[str, str]], generation: bool, template: Template) -> list[int]:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **template.options())
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def parity_scores(task: CausalLM, template: Template, pairs: Sequence[tuple[str, str]]) -> list[TokenScores | None]:
    """Score answers as open-unlearning does.

    Args:
        task: the model; neither it nor its encoder is changed.
        template: of the run.
        pairs: (question, answer).

    Returns:
        Per pair, in order, its scores, whose ``text`` is what its labels decode to; None where no label is left.
    """
    return score_tokens(task, [parity_tokens(task.tokenizer, template, q, a) for q, a in pairs])


def score_tokens(task: CausalLM, rows: Sequence[tuple[list[int], int]]) -> list[TokenScores | None]:
    """Score laid-out examples as open-unlearning does; see ``parity_scores``.

    Args:
        task: the model; neither it nor its encoder is changed.
        rows: token ids, and how many of them carry no label.
    """
    out: list[TokenScores | None] = [None] * len(rows)
    there = [i for i, (ids, start) in enumerate(rows) if start < len(ids)]
    if not there:
        return out
    encoded = Encoded(
        [str(i) for i in there],
        [np.asarray(rows[i][0], dtype=np.int64) for i in there],
        [max(rows[i][1], 1) for i in there],
    )
    texts = [task.tokenizer.decode(rows[i][0][rows[i][1] :], skip_special_tokens=True) for i in there]
    # Given something to do around a batch, the task runs each sequence by itself: a tree of what several share has a
    # mask of its own, which hiding tokens would overwrite.
    found = task.score_encoded(encoded, texts, lambda _: _padding_hidden(task))
    for i, scores in zip(there, found, strict=True):
        out[i] = scores
    return out


def gradient_norms(task: CausalLM, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Return per example the mean over weight tensors of the norm of the gradient of its NLL per token.

    As open-unlearning's ``mia_gradnorm``: the last label is left out. There the model is in training mode, so that
    dropout, where a model has it, makes the numbers random; here it is off.

    Args:
        task: the model; it is not changed.
        rows: token ids, and how many of them carry no label.

    Returns:
        NaN where one label or none is there.
    """
    weights = [weight for weight in task.model.parameters() if weight.requires_grad]
    out = []
    for ids, start in rows:
        if len(ids) - 1 <= start:
            out.append(float("nan"))
            continue
        with task.asked(), torch.enable_grad(), _padding_hidden(task):
            logits = task.model(input_ids=torch.tensor([ids], device=task.device)).logits[0]
            labels = torch.tensor(ids[start:-1], device=task.device)
            loss = torch.nn.functional.cross_entropy(logits[start - 1 : len(ids) - 2], labels)
            found = torch.autograd.grad(loss, weights, allow_unused=True)
        out.append(float(torch.stack([one.norm() for one in found if one is not None]).mean()))
    return out


@contextmanager
def _padding_hidden(task: CausalLM) -> Iterator[None]:
    """Hide every token that equals the padding token from attention, wherever it stands."""
    pad = task.encoder.pad_id

    def hide(module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        del module
        return args, {**given, "attention_mask": given["input_ids"].ne(pad).long()}

    handle = task.model.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Said:
    """What a model said and what it should have said, each as open-unlearning decodes it."""

    generation: str
    truth: str


def parity_generations(
    task: CausalLM,
    template: Template,
    pairs: Sequence[tuple[str, str]],
    new_tokens: int = NEW_TOKENS,
    batch: int = BATCH,
    shots: Shots = (),
    stops: Sequence[str] = (),
) -> list[Said]:
    """Generate greedily as open-unlearning does: batches in file order, padded left.

    Args:
        task: the model.
        template: of the run.
        pairs: (question, true answer).
        new_tokens: most new tokens; fewer where the model's context ends before.
        batch: questions in a batch; what a model says depends on it by rounding.
        shots: solved questions before each.
        stops: an answer ends before these.
    """
    # The prompt is tokenised alone here too, so it may end otherwise than the full text goes on.
    rows = [
        (parity_tokens(task.tokenizer, template, q, a, shots)[0], _prompt_tokens(task.tokenizer, template, q, shots))
        for q, a in pairs
    ]
    return _say(task, rows, new_tokens, batch, stops)


def continuations(task: CausalLM, pairs: Sequence[tuple[str, str]], new_tokens: int, batch: int) -> list[Said]:
    """Continue running text greedily as open-unlearning does.

    Args:
        task: the model.
        pairs: (beginning, how it goes on).
        new_tokens, batch: as in ``parity_generations``.
    """
    rows = []
    for beginning, text in pairs:
        ids, start = running_tokens(task.tokenizer, text, beginning)
        rows.append((ids[start:], list(task.tokenizer(beginning)["input_ids"])))
    return _say(task, rows, new_tokens, batch, ())


def _say(
    task: CausalLM,
    rows: Sequence[tuple[list[int], list[int]]],
    new_tokens: int,
    batch: int,
    stops: Sequence[str],
) -> list[Said]:
    """Generate from (tokens that hold the truth, tokens of the prompt)."""
    tokenizer, out = task.tokenizer, []
    context = getattr(task.model.config.get_text_config(), "max_position_embeddings", None) or LONGEST + new_tokens
    pad, ends = task.encoder.pad_id, [tokenizer.decode([tokenizer.eos_token_id]), *stops]
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        width = max(len(prompt) for _, prompt in part)
        room = max(1, min(new_tokens, context - width))
        ids = torch.tensor([[pad] * (width - len(p)) + p for _, p in part], device=task.device)
        with task.asked():
            made = task.model.generate(
                ids, attention_mask=ids.ne(pad).long(), do_sample=False, top_p=None, temperature=None,
                max_new_tokens=room, use_cache=True, pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        for (full, prompt), row in zip(part, made, strict=True):
            said = _decode(tokenizer, row[width:].tolist())
            for end in ends:
                said = said.split(end)[0] if end else said
            truth = _decode(tokenizer, full).replace(_decode(tokenizer, prompt), "").strip()
            out.append(Said(said.strip(), truth))
    return out


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True))
