"""A language model whose prediction is put together from several: a main one, and others added to or taken from it.

It is asked, scored, copied, saved and loaded like any other causal language model. The weights of the main model stay
what they are, so what is made this way is a guard: whoever has the folder has the main model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from expunge.errors import BadInput, Problem, UnsupportedModel
from expunge.tasks.blocks import LastFeedForward, Operations, first_blocks, plain_model
from expunge.tasks.causal_lm import CausalLM, ChatMode, refuse_guarded
from expunge.tasks.combination import Combination, combine
from expunge.tasks.encoding import Batch
from expunge.tasks.statistics import head_rows
from expunge.tasks.storage import CARD, SETTINGS, first_line, quiet, replacing, stored_settings

ADAPTER = "adapter_model.safetensors"


class EnsembleCache:
    """One cache per model, cut down together."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = list(parts)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        for part in self.parts:
            part.batch_select_indices(indices)


class EnsembleModel(nn.Module):
    """The module behind a ``LogitEnsemble``: runs every model on the same tokens and combines what they predict."""

    def __init__(self, main: nn.Module, others: Sequence[nn.Module], rule: Combination):
        super().__init__()
        self.main, self.others, self.rule = main, nn.ModuleList(others), rule
        self.eval()

    def members(self) -> list[nn.Module]:
        """Every model, the main one first."""
        return [self.main, *self.others]

    def get_base_model(self) -> Any:
        """The main model, as the library knows it."""
        return plain_model(self.main)

    @property
    def config(self) -> Any:
        """The main model's configuration."""
        return self.get_base_model().config

    def get_input_embeddings(self) -> nn.Module:
        """The main model's embeddings."""
        table: nn.Module = self.get_base_model().get_input_embeddings()
        return table

    def get_output_embeddings(self) -> nn.Module:
        """The main model's output head."""
        head: nn.Module = self.get_base_model().get_output_embeddings()
        return head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: EnsembleCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """Run all models; see ``combine`` for what comes out."""
        given = {"attention_mask": attention_mask, "use_cache": use_cache, "logits_to_keep": logits_to_keep, **more}
        logits, caches = [], []
        for k, member in enumerate(self.members()):
            named = inspect.signature(plain_model(member).forward).parameters
            known = {key: value for key, value in given.items() if key in named}
            past = past_key_values.parts[k] if past_key_values is not None else None
            output = member(input_ids=input_ids, past_key_values=past, **known)
            logits.append(output.logits[:, -logits_to_keep:] if logits_to_keep else output.logits)
            caches.append(getattr(output, "past_key_values", None))
        # Models that keep their state elsewhere, or cannot cut it down, read the whole text again.
        whole = use_cache and all(hasattr(cache, "batch_select_indices") for cache in caches)
        combined = combine(logits, self.rule, generating=use_cache)
        return CausalLMOutputWithPast(logits=combined, past_key_values=EnsembleCache(caches) if whole else None)


@dataclass(frozen=True)
class Member:
    """One of the further models, as it is stored.

    Attributes:
        folder: where it is, within the ensemble's folder.
        blocks: it is made of the first so many blocks of the main model and the adapter in the folder; 0 where the
            folder holds a model of its own.
    """

    folder: str
    blocks: int = 0


class LogitEnsemble(CausalLM):
    """Several language models that predict as one: a weighted sum of their logits.

    The folder that ``save`` writes holds the main model as the library itself would load it, the others in
    sub-folders, and in ``expunge.json`` what it is. Loaded by the library alone it is the main model.

    Args:
        main: the main model, whose tokenizer, template and limits hold.
        others: further models over the same vocabulary. One that was made of the main model's own first blocks with
            ``first_blocks`` and carries an adapter (peft) is stored as the adapter alone.
        rule: how their predictions are combined.
        blocks: per further model, how many of the main model's blocks it is made of; 0 for a model of its own.

    Raises:
        BadInput: a model has another vocabulary, there is not one weight per model, or the main one is behind a guard.
    """

    id: ClassVar[str] = "logit_ensemble"
    removal_level: ClassVar[str] = "guard"
    note: ClassVar[str] = (
        "This folder holds several models that predict together. Plain `from_pretrained` loads the main one alone: "
        "the model as it was before, without what counteracts the deleted data. Load it with "
        "`expunge.load_task`, or name the folder wherever Expunge takes a model."
    )

    def __init__(
        self, main: CausalLM, others: Sequence[nn.Module], rule: Combination, *, blocks: Sequence[int] | None = None
    ):
        refuse_guarded(main)
        sizes = [_vocabulary(m) for m in (main.model, *others)]
        problems = [
            Problem(f"model {k}", f"predicts {size} tokens where the main one predicts {sizes[0]}", "give one like it")
            for k, size in enumerate(sizes)
            if size != sizes[0]
        ]
        if len(rule.weights) != len(others):
            what = f"are {len(rule.weights)} for {len(others)} further models"
            problems.append(Problem("weights", what, "give one per further model"))
        if problems:
            raise BadInput(problems)
        super().__init__(EnsembleModel(main.model, others, rule), main.tokenizer)
        self.encoder, self.source = main.encoder, main.source
        self.blocks = tuple(blocks or (0,) * len(others))
        each = [Operations.of(plain_model(member)) for member in self.model.members()]
        self.operations = Operations(
            blocks=tuple(b for one in each for b in one.blocks),
            rest=sum(one.rest for one in each),
            head=sum(one.head for one in each),
            width=each[0].width,
            feed_forward=sum(one.feed_forward for one in each),
        )
        self._parts: list[LastFeedForward] = []

    @property
    def base(self) -> CausalLM:
        """The main model alone."""
        return self._main(self.model.main)

    def _main(self, model: PreTrainedModel) -> CausalLM:
        main = CausalLM(model, self.tokenizer, source=self.source)
        main.encoder = self.encoder
        return main

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the main model's weights under their own names, then over those that only the others have."""
        yield from self.base.named_parameters()
        shared = {id(p) for p in self.model.main.parameters()}
        yield from ((f"others.{n}", p) for n, p in self.model.others.named_parameters() if id(p) not in shared)

    # ---- one forward pass ------------------------------------------------------------------------------------------

    def _rows_of(self, batch: Batch, forward: nn.Module, *, rows_only: bool = False) -> tuple[Tensor, Tensor]:
        with ExitStack() as stack:
            members = self.model.members()
            seen = [stack.enter_context(head_rows(_head(m), batch.rows)) for m in members]
            spared = [stack.enter_context(last.at(batch.rows)) for last in self._lasts(members)] if rows_only else [[]]
            places = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
            output = forward(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **places)
        self._account(batch, spared=min(map(sum, spared)))
        if wrong := [k for k, rows in enumerate(seen) if len(rows) != 1]:
            what = f"called its output head {len(seen[wrong[0]])} times in a forward pass"
            raise UnsupportedModel(Problem(f"model {wrong[0]}", what, "combine models that call it once"))
        return output.logits.reshape(-1, output.logits.shape[-1]), seen[0][0]

    def _lasts(self, members: Sequence[nn.Module]) -> list[LastFeedForward]:
        if [last.model for last in self._parts] != list(members):
            self._parts = [LastFeedForward(member) for member in members]
        return self._parts

    # ---- other models like it --------------------------------------------------------------------------------------

    def fresh(self, seed: int) -> CausalLM:
        """Return the main model's architecture with new random weights: what never knew needs no counterweight."""
        return self.base.fresh(seed)

    def load_like(self, path: str | Path) -> CausalLM:
        """Load another checkpoint, of a single model, to be used as this one is."""
        return self.base.load_like(path)

    def wrap_lora(self, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str = "all-linear") -> None:
        """Freeze all models and add adapters to the main one."""
        main = self.base
        main.wrap_lora(rank, alpha, dropout, targets)
        self.model.requires_grad_(False)
        for name, parameter in main.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.model.main = main.model

    def merge_lora(self) -> None:
        """Fold the main model's adapters into its weights; those of the others stay."""
        main = self.base
        main.merge_lora()
        self.model.main = main.model
        self.model.requires_grad_(True)

    # ---- on disk ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write everything into one folder, complete or not at all; see the class for what is where.

        Raises:
            BadInput: the disk has not enough room, or the folder holds something that is not a model.
        """
        folder = Path(folder)
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return
        members = [asdict(Member(f"members/{k}", blocks)) for k, blocks in enumerate(self.blocks, 1)]
        stored = {"task": self.id, "note": self.note, "combination": asdict(self.model.rule), "members": members}
        with replacing(folder, [p for _, p in self.named_parameters()]) as scratch:
            self.base.save(scratch, {**stored, **(metadata or {})})
            for member, model in zip(members, self.model.others, strict=True):
                place = scratch / member["folder"]
                if not member["blocks"]:
                    self._main(model).save(place)
                    continue
                # The library would write the path that the main model was loaded from.
                model.active_peft_config.base_model_name_or_path = None
                with quiet():
                    model.save_pretrained(place, safe_serialization=True)
                (place / CARD).unlink(missing_ok=True)
            (scratch / CARD).write_text(f"# Several models that predict as one\n\n{self.note}\n", encoding="utf-8")

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
    ) -> LogitEnsemble:
        """Load a folder that ``save`` wrote, from safetensors only.

        Raises:
            BadInput: a model in it cannot be loaded, or what it says of itself is damaged.
        """
        folder = Path(path)
        main = CausalLM.read(folder, dtype=dtype, device=device, template=template, chat=chat, max_length=max_length)
        rule, members = _stored(folder)
        others = [_load_member(main, folder / m.folder, m.blocks, dtype, device) for m in members]
        loaded = cls(main, others, rule, blocks=[m.blocks for m in members])
        loaded.model.requires_grad_(True)
        return loaded


def _load_member(main: CausalLM, folder: Path, blocks: int, dtype: str, device: str) -> nn.Module:
    if not blocks:
        return CausalLM.read(folder, dtype=dtype, device=device).model
    from peft import PeftModel

    if not (folder / ADAPTER).is_file():
        fix = "copy the folder again, or take it from the run that made it"
        raise BadInput(Problem(f"model {folder}", f"has no {ADAPTER}", fix))
    try:
        with quiet():
            model: nn.Module = PeftModel.from_pretrained(
                first_blocks(main.model, blocks), folder, torch_device=device, use_safetensors=True
            )
    except Exception as error:
        fix = "copy the folder again, or take it from the run that made it"
        raise BadInput(Problem(f"model {folder}", f"cannot be loaded: {first_line(error)}", fix)) from error
    return model.to(device)


def _stored(folder: Path) -> tuple[Combination, list[Member]]:
    """Read how the models of a folder are combined, and where they are."""
    stored = stored_settings(folder)
    try:
        given: Mapping[str, Any] = stored["combination"]
        rule = Combination(**{**given, "weights": tuple(given["weights"])})
        members = [Member(**member) for member in stored["members"]]
    except (KeyError, TypeError) as error:
        what = f"does not say how its models are combined ({type(error).__name__}: {error})"
        raise BadInput(Problem(str(folder / SETTINGS), what, "take it from the run that made it")) from error
    inside = folder.resolve()
    if wrong := [m.folder for m in members if inside not in (folder / m.folder).resolve().parents]:
        raise BadInput(Problem(str(folder / SETTINGS), f"names {wrong[0]}, outside of the folder", "do not trust it"))
    return rule, members


def _head(model: nn.Module) -> nn.Module:
    head: nn.Module = plain_model(model).get_output_embeddings()
    return head


def _vocabulary(model: nn.Module) -> int:
    return len(_head(model).weight)  # type: ignore[arg-type]
