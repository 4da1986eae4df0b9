"""Causal language models: any ``AutoModelForCausalLM`` with its tokenizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from expunge.errors import BadInput, Problem, UnsupportedModel
from expunge.tasks.base import Task
from expunge.tasks.blocks import LastFeedForward, Operations, block_rows, decoder_blocks, plain_model, trained_share
from expunge.tasks.cost import Cost
from expunge.tasks.encoding import (
    Batch,
    Encoded,
    Positions,
    Prompt,
    TextEncoder,
    collate,
    length_batches,
    prompt_of,
)
from expunge.tasks.generation import generate
from expunge.tasks.scoring import Around, score_each, score_trees, trees_of
from expunge.tasks.statistics import Statistics, head_rows
from expunge.tasks.storage import (
    DTYPES,
    check_loading,
    first_line,
    is_model,
    load_complete,
    quiet,
    replacing,
    stored_settings,
    write_settings,
)
from expunge.tasks.tokens import TokenScores

ChatMode = Literal["auto", "always", "never"]

# A forward pass without gradients takes up to this many padded tokens, fewer where its logits would have more than
# this many numbers. Both bound memory and leave results unchanged.
FORWARD_TOKENS = 4096
FORWARD_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}


class CausalLM(Task):
    """A causal language model and its tokenizer.

    Args:
        model: a transformers model with an output head.
        tokenizer: its tokenizer.
        template: how prompt and answer are joined when no chat template is used.
        chat: when the tokenizer's chat template is used, see ``TextEncoder``.
        max_length: longest example in tokens; the model's own limit by default.
        source: where the model came from, for reports.
    """

    id: ClassVar[str] = "causal_lm"
    kind = "causal_lm"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str = "{prompt} {answer}",
        chat: ChatMode = "auto",
        max_length: int | None = None,
        source: str = "",
    ):
        if getattr(model, "get_output_embeddings", lambda: None)() is None:
            raise UnsupportedModel(
                Problem(type(model).__name__, "has no output head over a vocabulary", "give an AutoModelForCausalLM")
            )
        check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0], f"model {source}".strip())
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.model: Any = model
        self.tokenizer = tokenizer
        self.encoder = TextEncoder(tokenizer, template=template, chat=chat, max_length=max_length or limit)
        self.source = source
        self.cost = Cost()
        self.operations = Operations.of(model)
        # Whether sequences that begin alike can share their beginning; None until it was tried.
        self.takes_trees: bool | None = None
        self._last: LastFeedForward | None = None

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
    ) -> CausalLM:
        """Load a model and tokenizer from a folder or by hub name, from safetensors only and without remote code.

        Template and chat mode that an earlier run stored beside the model are used unless given here.

        Raises:
            BadInput: no such model, unknown dtype or device, damaged files, weights that are not safetensors, or a
                folder that holds more than this one model, such as a guard around it.
        """
        kind = stored_settings(Path(path)).get("task", cls.id)
        if kind != cls.id:
            what = f"holds a {kind}, of which this would load a part"
            raise BadInput(Problem(f"model {path}", what, "load it with expunge.load_task"))
        return cls.read(path, dtype=dtype, device=device, template=template, chat=chat, max_length=max_length)

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        template: str | None = None,
        chat: ChatMode | None = None,
        max_length: int | None = None,
    ) -> CausalLM:
        """Load what the library itself would load of a folder, whatever else the folder says that it holds."""
        check_loading(dtype, device)
        model = cls._model(path, dtype=DTYPES[dtype])
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except Exception as error:
            raise _not_loaded(path, error) from error
        stored = stored_settings(Path(path))
        return cls(
            model.to(device),
            tokenizer,
            template=template or stored.get("template", "{prompt} {answer}"),
            chat=chat or stored.get("chat", "auto"),
            max_length=max_length,
            source=str(path),
        )

    @classmethod
    def _model(cls, path: str | Path, **how: Any) -> Any:
        """Load what the library itself would, and nothing that it had to make up."""
        return load_complete(AutoModelForCausalLM, path, partial(_not_loaded, path), **how)

    @classmethod
    def check_fit(cls, path: str | Path) -> None:
        """Refuse a folder whose weights are not those that its configuration describes, without reading them.

        Raises:
            BadInput: weights that are missing or of another shape, or a folder that cannot be loaded.
        """
        cls._model(path, device_map="meta")

    @property
    def base(self) -> CausalLM:
        """The model inside what surrounds it, such as a guard; itself where nothing does."""
        return self

    def save(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write model and tokenizer so that plain ``from_pretrained`` gives the same logits.

        Everything is written to a neighbouring folder first and moved into place when complete; a model that was
        there before is removed only then. Where several processes hold the same model, the first one writes.

        Raises:
            BadInput: the disk has not enough room, or the folder holds something that is not a model.
        """
        folder = Path(folder)
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return
        with replacing(folder, self.model.parameters()) as scratch:
            with quiet():
                self.model.save_pretrained(scratch, safe_serialization=True)
            self.tokenizer.save_pretrained(scratch)
            settings = {"task": self.id, "template": self.encoder.template, "chat": self.encoder.chat}
            write_settings(scratch, {**settings, **(metadata or {})})

    def load_like(self, path: str | Path) -> CausalLM:
        """Load another checkpoint to be used as this one is: same device, precision, template, chat mode and limit."""
        return type(self).load(
            path,
            dtype=str(next(self.model.parameters()).dtype).removeprefix("torch."),
            device=str(self.device),
            template=self.encoder.template,
            chat=self.encoder.chat,
            max_length=self.encoder.max_length,
        )

    def fresh(self, seed: int) -> CausalLM:
        """Return the same architecture with new random weights that depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(self._plain().config, trust_remote_code=False)
        model.to(dtype=next(self.model.parameters()).dtype, device=self.device)
        return self._like(model, f"fresh weights, seed {seed}")

    def copy(self) -> CausalLM:
        """Return an independent deep copy."""
        return self._like(copy.deepcopy(self.model), self.source)

    def _like(self, model: PreTrainedModel, source: str) -> CausalLM:
        other = copy.copy(self)
        other.model, other.source, other.cost = model, source, Cost()
        return other

    def _plain(self) -> Any:
        """The transformers model itself, inside its adapters if there are any."""
        return plain_model(self.model)

    # ---- adapters -------------------------------------------------------------------------------------------------

    def wrap_lora(self, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str = "all-linear") -> None:
        """Freeze the weights and add low-rank adapters (peft) to every linear layer, or to the named ones."""
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
        )
        try:
            self.model = get_peft_model(self.model, settings)
        except ValueError as error:
            raise BadInput(Problem("lora targets", first_line(error), "name linear layers of this model")) from error

    def merge_lora(self) -> None:
        """Fold the adapters into the weights; what is left is a plain model, all of whose weights can train."""
        if hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload().requires_grad_(True)

    # ---- one forward pass ------------------------------------------------------------------------------------------

    def encode(self, examples: Dataset) -> Encoded:
        """Tokenise a canonical example set; see ``TextEncoder.encode``."""
        rows = examples.to_list()
        return self.encoder.encode([(prompt_of(r), r["answer"]) for r in rows], [r["id"] for r in rows])

    def encode_lengths(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[tuple[int, int]]:
        """Return (prompt tokens, answer tokens) per pair, for checks before any compute."""
        return self.encoder.encode_lengths(prompts, answers)

    def statistics(
        self,
        encoded: Encoded,
        *,
        positions: Positions = "answer",
        forward: nn.Module | None = None,
        hidden: bool = False,
        blocks: Sequence[int] = (),
        logits: bool = True,
        rows_only: bool = False,
    ) -> Statistics:
        """Run one forward pass in which only the rows that are read go through the output head.

        Args:
            encoded: the batch.
            positions: which rows are read.
            forward: what to call instead of the model: the same model wrapped for several processes.
            hidden: also return the rows of the head's input.
            blocks: also return the rows of these blocks' outputs, counted from 0.
            logits: False where only block outputs are read: nothing above the deepest of these blocks is run then.
            rows_only: let only these rows through the last block's feed-forward part too, see ``LastFeedForward``.

        Returns:
            Statistics with (R, V) float32 logits, or (R, 0) without; gradients flow unless they are switched off.

        Raises:
            BadInput: a block that the model does not have.
            UnsupportedModel: its blocks cannot be found, or its head is not called once.
        """
        batch = collate(encoded, self.encoder.pad_id, self.device, positions)
        stack = self._stack(blocks)
        with block_rows(stack, blocks, batch.rows, leave=not logits) as outputs:
            found, rows = self._rows_of(batch, forward or self.model, rows_only=rows_only and logits)
        if not logits:
            self._account(batch, depth=max(blocks) + 1)
            found = rows = outputs[max(blocks)].new_empty(len(batch.rows), 0)
        return Statistics(
            logits=found.float(),
            targets=batch.targets,
            example=batch.example,
            counts=batch.counts,
            ids=batch.ids,
            hidden=rows if hidden and logits else None,
            blocks=outputs,
        )

    def hidden_states(
        self, encoded: Encoded, layers: Sequence[int], *, positions: Positions = "answer", upto: bool = True
    ) -> dict[int, Tensor]:
        """Return what blocks give out at the rows read; gradients flow unless they are switched off.

        Args:
            encoded: the batch.
            layers: which blocks, from 0; at least one.
            positions: which rows are read.
            upto: run nothing above the deepest of them: no further block, no final norm, no head.

        Returns:
            Per layer (R, H) in the model's precision, as ``output_hidden_states`` has them at ``layer + 1`` (but for
            the last block, whose entry there is behind the final norm).

        Raises:
            BadInput: no layer, or one that the model does not have.
            UnsupportedModel: its blocks cannot be found.
        """
        if not layers:
            raise BadInput(Problem("layers", "name no block", "give at least one"))
        return dict(self.statistics(encoded, positions=positions, blocks=layers, logits=not upto).blocks)

    def _stack(self, layers: Sequence[int]) -> Sequence[nn.Module]:
        """Return the decoder blocks, and refuse layers that are not among them."""
        stack: Sequence[nn.Module] = list(decoder_blocks(self.model)) if layers else []
        if wrong := [layer for layer in layers if not 0 <= layer < len(stack)]:
            raise BadInput(Problem("layer", f"{wrong[0]} is not there", f"give one from 0 to {len(stack) - 1}"))
        return stack

    def _rows_of(self, batch: Batch, forward: nn.Module, *, rows_only: bool = False) -> tuple[Tensor, Tensor]:
        spared: list[int] = []
        with ExitStack() as stack:
            seen = stack.enter_context(head_rows(self.model.get_output_embeddings(), batch.rows))
            if rows_only:
                spared = stack.enter_context(self._last_feed_forward().at(batch.rows))
            places = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
            output = forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **places)
        self._account(batch, spared=sum(spared))
        logits = output.logits
        if len(seen) != 1:
            raise UnsupportedModel(
                Problem(
                    type(self._plain()).__name__,
                    f"called its output head {len(seen)} times in a forward pass",
                    "Expunge needs a model whose get_output_embeddings() module is applied once",
                )
            )
        return logits.reshape(-1, logits.shape[-1]), seen[0]

    def _last_feed_forward(self) -> LastFeedForward:
        if self._last is None or self._last.model is not self.model:
            self._last = LastFeedForward(self.model)
        return self._last

    @property
    def outcomes(self) -> int:
        """Size of the vocabulary."""
        return int(self._plain().config.get_text_config().vocab_size)

    @property
    def tokens_per_forward(self) -> int:
        """Padded tokens that a forward pass without gradients may take, so that its logits fit into memory."""
        budget = FORWARD_LOGITS["cpu" if self.device.type == "cpu" else "cuda"]
        return max(256, min(FORWARD_TOKENS, budget // self.outcomes))

    def head_module(self) -> nn.Module:
        """Return the output embedding."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    def head(self, hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Map (R, H) rows of the head's input to (R, V) float32 logits, soft cap and scale of the model included."""
        head = self.model.get_output_embeddings()
        logits = torch.func.functional_call(head, weights, (hidden,)).float()
        config = self._plain().config.get_text_config()
        for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
            if isinstance(factor := getattr(config, name, None), int | float):
                logits = logits * factor
        if isinstance(divisor := getattr(config, "logits_scaling", None), int | float):  # Granite
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _account(self, batch: Batch, depth: int | None = None, spared: int = 0) -> None:
        training = torch.is_grad_enabled()
        padded, width, rows = batch.input_ids.numel(), batch.input_ids.shape[1], len(batch.rows)
        forward = self.operations.forward(padded, width, rows, depth, spared)
        self.cost.forwards += 1
        self.cost.backwards += int(training)
        self.cost.sequences += len(batch.ids)
        self.cost.tokens += batch.real_tokens
        self.cost.padded_tokens += padded
        self.cost.flops += forward
        if training:
            # A backward costs one forward for the gradient of the inputs, as deep as anything is trained, and one for
            # that of the weights that are.
            share, lowest = trained_share(self.model, depth)
            below = self.operations.forward(padded, width, rows, lowest) if lowest else 0.0
            self.cost.flops += forward * (1 + share) - below

    # ---- what audits ask -------------------------------------------------------------------------------------------

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Evaluation mode without gradients; the mode before is restored, also after an error."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.cost.measured():
                yield
        finally:
            self.model.train(was_training)

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[TokenScores]:
        """Score answers in one teacher-forced pass; what several begin with goes through the model once.

        Args:
            pairs: (prompt, answer).

        Returns:
            Per pair, in order, the per-token statistics that all log-likelihood metrics are functions of.
        """
        return self.score_encoded(self.encoder.encode(pairs), [answer for _, answer in pairs]) if pairs else []

    def score_encoded(
        self,
        encoded: Encoded,
        texts: Sequence[str],
        around: Around | None = None,
    ) -> list[TokenScores]:
        """Score tokenised answers; see ``score``.

        Args:
            encoded: prompts with their answers.
            texts: the answers.
            around: given the indices of a batch, in the order of its rows, returns what to do around its forward pass.

        Returns:
            Per example, in order, the scores of its answer.
        """
        with self.asked():
            trees = None if around else trees_of(self, encoded)
            return score_trees(self, encoded, texts, trees) if trees else score_each(self, encoded, texts, around)

    def next_token_log_probs(
        self, texts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        """Say how likely some tokens are right after each text, in one pass and with one row each through the head.

        Args:
            texts: token ids, at least one each; no chat template is used.
            candidates: per text, the tokens that are asked for.

        Returns:
            Per text, the log-probabilities of its candidates in nats.
        """
        encoded = Encoded(
            [str(k) for k in range(len(texts))],
            [np.asarray([*text, self.encoder.eos_id], dtype=np.int64) for text in texts],
            [len(text) for text in texts],
        )
        out: list[NDArray[np.float64]] = [np.empty(0)] * len(texts)
        with self.asked():
            for indices in length_batches([len(text) for text in texts], self.tokens_per_forward):
                batch = collate(encoded.take(indices), self.encoder.pad_id, self.device)
                logits, _ = self._rows_of(batch, self.model)
                found = logits.float().log_softmax(-1).double().cpu().numpy()
                for row, index in zip(found, indices, strict=True):
                    out[index] = row[list(candidates[index])]
        return out

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: Sequence[int],
        *,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """Continue prompts; each row stops at the end of sequence or at its own limit.

        Args:
            prompts: what to continue.
            max_new_tokens: per prompt, the most new tokens.
            temperature: 0 takes the most probable token; above, tokens are drawn from softmax(logits / temperature).
            seed: of the draws, one for all rows or one per row. What a row draws follows from its seed and its prompt
                alone, so two rows of one prompt need two seeds to differ.

        Returns:
            The new text per prompt, special tokens removed, stripped.

        Raises:
            BadInput: a temperature below 0 or not finite.
            BrokenScores: a prediction is NaN or infinite.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise BadInput(Problem("temperature", f"is {temperature}", "give 0 for greedy, or a number above"))
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        with self.asked():
            rows = generate(
                self,
                self.encoder.encode_prompts(prompts),
                list(max_new_tokens),
                temperature=temperature,
                seeds=seeds,
            )
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]

    def answer_nll(self, pairs: Sequence[tuple[Prompt, str]]) -> Tensor:
        """Return the answer NLL averaged over all tokens of the pairs, in nats; gradients flow."""
        stats = self.statistics(self.encoder.encode(pairs))
        return stats.nll.sum() / stats.counts.sum()

    def gradient_norms(self, pairs: Sequence[tuple[Prompt, str]], order: float = 2.0) -> NDArray[np.float64]:
        """Return per pair the p-norm of the gradient of its mean answer NLL, averaged over the parameter tensors.

        One example at a time in evaluation mode, so that neither dropout nor the rest of a batch enters.
        """
        was_training = self.model.training
        self.model.eval()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norms = np.empty(len(pairs))
        try:
            with self.cost.measured():
                for i, pair in enumerate(pairs):
                    grads = torch.autograd.grad(self.answer_nll([pair]), parameters, allow_unused=True)
                    norms[i] = float(torch.stack([g.float().norm(order) for g in grads if g is not None]).mean())
        finally:
            self.model.train(was_training)
        return norms

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, special tokens not counted."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def refuse_guarded(task: CausalLM) -> None:
    """Refuse a model that is behind a guard already: a folder holds one guard.

    Raises:
        BadInput: naming the guard.
    """
    if task.base is not task:
        what = f"is behind a guard already ({task.id}), and a folder holds one"
        raise BadInput(Problem(f"model {task.source}", what, "give the model without it, or a method that trains"))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> None:
    """Refuse a tokenizer that makes tokens of which the model knows nothing.

    Tokens that were added to it count only where every sequence may hold them: begin, end and padding.

    Args:
        tokenizer: the model's.
        rows: tokens that the model has embeddings of.
        where: the model, for the message.

    Raises:
        BadInput: see above.
    """
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    largest = max(tokenizer.vocab_size - 1, *(int(token) for token in special if token is not None), -1)
    if largest >= rows:
        what = f"embeds {rows} tokens, and its tokenizer makes ids up to {largest}"
        fix = "give the tokenizer that belongs to it, or call model.resize_token_embeddings(len(tokenizer)) and save it"
        raise BadInput(Problem(where, what, fix))


def _not_loaded(path: str | Path, error: Exception) -> BadInput:
    fix = "give a folder with config.json, *.safetensors and tokenizer files, or the name of a model on the hub"
    if is_model(Path(path) / "model"):
        fix = f"give {Path(path) / 'model'}, the model in this run folder"
    return BadInput(Problem(f"model {path}", f"cannot be loaded: {first_line(error)}", fix))


def config_of(path: str | Path) -> Any:
    """Read a model's configuration without its weights."""
    return AutoConfig.from_pretrained(path, trust_remote_code=False)
