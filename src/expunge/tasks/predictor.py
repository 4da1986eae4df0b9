"""Models with one prediction per example: classifiers and regressors of images, texts and tables."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.errors import BadInput, Problem, UnsupportedModel
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import LabelledExamples, Positions
from expunge.tasks.factories import OWN, Factory, allowed_factory, check_factory
from expunge.tasks.heads import (
    calls_of,
    head_name,
    mixing_layers,
    nonlinearities_of,
    read_rows,
    without_batch_statistics,
)
from expunge.tasks.image_inputs import Augment, ImageInputs
from expunge.tasks.inputs import Inputs
from expunge.tasks.outcomes import Classes, Numbers, Outcome
from expunge.tasks.predictions import ExampleRow, ExampleScore, Predictions, by_set
from expunge.tasks.pretrained import WEIGHTS, check_module, load_module, load_pretrained, loader_of, outcome_for
from expunge.tasks.reading import Reading, reading_of
from expunge.tasks.statistics import RegressionStatistics, Statistics
from expunge.tasks.storage import (
    DTYPES,
    check_loading,
    first_line,
    quiet,
    replacing,
    stored_settings,
    write_settings,
)
from expunge.tasks.table_inputs import TableInputs
from expunge.tasks.text_inputs import TextInputs

# A forward pass without gradients takes about this many numbers of input, which bounds memory and changes nothing.
FORWARD_NUMBERS = 1 << 21
FORWARD_TOKENS = 8192


class Predictor(Task):
    """A classifier or regressor with what turns examples into its inputs and targets.

    Args:
        model: a transformers model for image or sequence classification, or any module that maps a batch to logits
            (B, C), or to numbers (B, D) or (B,).
        inputs: how examples are put into it.
        outcome: classes or numbers.
        factory: makes the module again, for saving and for exact retraining of a module that is not transformers'.
        source: where the model came from, for reports.

    Raises:
        UnsupportedModel: the model's head has another width than the outcome.
    """

    id: ClassVar[str] = "predictor"
    small_blocks = False

    def __init__(
        self, model: nn.Module, inputs: Inputs, outcome: Outcome, *, factory: Factory | None = None, source: str = ""
    ):
        self.model: Any = model
        self.inputs, self.outcome, self.factory, self.source = inputs, outcome, factory, source
        self.kind = Reading(inputs, outcome).kind
        if isinstance(outcome, Numbers):
            self.loss, self.unit = "squared error", "on the model's scale"
        else:
            self.loss, self.unit = "cross-entropy", "nats"
        self.cost = Cost()
        self._head = head_name(model, outcome.width)
        self._flops_per_number = 0.0
        width = getattr(getattr(model, "config", None), "num_labels", outcome.width)
        if width != outcome.width:
            raise UnsupportedModel(
                Problem(
                    type(model).__name__, f"has {width} outputs for {outcome.width}", "give the model's own classes"
                )
            )
        self._mixing = mixing_layers(model)

    # ---- making and loading ----------------------------------------------------------------------------------------

    @classmethod
    def of_images(
        cls,
        model: nn.Module,
        outcome: Outcome | Sequence[str] | None = None,
        *,
        factory: Factory | None = None,
        inputs: ImageInputs | None = None,
        **settings: Any,
    ) -> Predictor:
        """Return an image classifier or regressor.

        Args:
            model: see the class.
            outcome: classes by name, or ``Numbers``; by default the classes of a transformers model.
            factory: see the class.
            inputs: how images are put in; by default what the model's configuration says.
            settings: fields of ``ImageInputs`` that differ from that.
        """
        config = getattr(model, "config", None)
        known = ImageInputs.read(Path(), config.to_dict() if config is not None else {}) if inputs is None else inputs
        made = ImageInputs.of({**known.settings(), **settings})
        return cls(model, made, outcome_for(model, outcome), factory=factory, source=type(model).__name__)

    @classmethod
    def of_texts(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        outcome: Outcome | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
    ) -> Predictor:
        """Return a text classifier or regressor; longer texts than the model or ``max_length`` takes are cut."""
        inputs = TextInputs(tokenizer, max_length or getattr(model.config, "max_position_embeddings", None))
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = inputs.pad_id
        return cls(model, inputs, outcome_for(model, outcome), source=type(model).__name__)

    @classmethod
    def of_table(
        cls,
        inputs: TableInputs,
        outcome: Outcome | Sequence[str],
        *,
        seed: int = 0,
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        model: nn.Module | None = None,
        factory: Factory | None = None,
    ) -> Predictor:
        """Return a classifier or regressor of table rows: a small MLP of fresh weights, or the module given."""
        made = outcome_for(model, outcome)
        if model is None and factory is None:
            sizes = {"inputs": inputs.width, "outputs": made.width, "hidden": list(hidden), "dropout": dropout}
            factory = Factory("expunge.tasks.mlp:mlp", sizes)
            model = factory.make(seed)
        elif model is None:
            assert factory is not None
            model = factory.make(seed)
        return cls(model, inputs, made, factory=factory, source=f"{type(model).__name__}, fresh weights, seed {seed}")

    @classmethod
    def recognises(cls, path: str | Path, config: Mapping[str, Any]) -> bool:
        """A transformers model for image or sequence classification."""
        return loader_of(config) is not None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        factory: str | None = None,
        max_length: int | None = None,
        augment: Augment | None = None,
    ) -> Predictor:
        """Load a model from a folder or by hub name, from safetensors only and without remote code.

        Args:
            path: the folder or name.
            dtype, device: precision and place of the weights.
            factory: ``module:function`` that made a plain module; a folder that names one is refused without it.
            max_length: longest text in tokens.
            augment: what training changes at random in images; by default what the folder says.

        Raises:
            BadInput: no such model, unknown options, damaged files, weights that are not safetensors, or a factory
                that was not named.
        """
        check_loading(dtype, device)
        check_factory(path, factory)
        stored, made = stored_settings(Path(path)), None
        if "factory" in stored:
            made = allowed_factory(stored["factory"], factory, f"model {path}")
            model = load_module(made, Path(path))
        else:
            model = load_pretrained(path)
        model.to(device=device, dtype=DTYPES[dtype])
        reading = reading_of(path, config=getattr(model, "config", None), max_length=max_length, augment=augment)
        return cls(model, reading.inputs, reading.outcome, factory=made, source=str(path))

    @classmethod
    def check_fit(cls, path: str | Path) -> None:
        """Refuse a folder whose weights are not those that its configuration or factory describes.

        Raises:
            BadInput: weights that are missing or of another shape.
        """
        stored = stored_settings(Path(path)).get("factory")
        if stored is None:
            load_pretrained(path, device_map="meta")
        elif stored.get("function") in OWN:  # what the user must name, is not called for a check
            check_module(allowed_factory(stored, None, f"model {path}"), Path(path))

    def save(self, folder: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write the model so that plain ``from_pretrained`` (or the factory and safetensors) gives the same outputs.

        Raises:
            BadInput: a plain module without a factory, no room on the disk, or the folder holds something else.
        """
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return
        plain = self._plain()
        self._check_makeable(plain)
        with replacing(Path(folder), self.model.state_dict().values()) as scratch:
            settings = {
                "task": self.id,
                "inputs": self.inputs.settings(),
                "outcome": self.outcome.settings(),
                **(metadata or {}),
            }
            if isinstance(plain, PreTrainedModel):
                with quiet():
                    plain.save_pretrained(scratch, safe_serialization=True)
            else:
                assert self.factory is not None
                save_model(plain, str(scratch / WEIGHTS))
                settings["factory"] = self.factory.settings()
                settings["note"] = f'`expunge.load_task(folder, factory="{self.factory.function}")`'
            self.inputs.save(scratch)
            write_settings(scratch, settings)

    def _check_makeable(self, plain: nn.Module) -> None:
        if self.factory is None and not isinstance(plain, PreTrainedModel):
            what = "is a plain module, which cannot be made again without a factory"
            fix = "give Factory('module:function', arguments) with the model"
            raise BadInput(Problem(type(plain).__name__, what, fix))

    def load_like(self, path: str | Path) -> Predictor:
        """Load another checkpoint to be used as this one is: same device, precision, inputs and targets."""
        other = type(self).load(
            path,
            dtype=str(next(self.model.parameters()).dtype).removeprefix("torch."),
            device=str(self.device),
            factory=None if self.factory is None else self.factory.function,
        )
        return self._like(other.model, other.source)

    def fresh(self, seed: int) -> Predictor:
        """Return the same architecture with new random weights and buffers that depend on the seed alone."""
        plain = self._plain()
        self._check_makeable(plain)
        if isinstance(plain, PreTrainedModel):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model: nn.Module = type(plain)(copy.deepcopy(plain.config))
        else:
            assert self.factory is not None
            model = self.factory.make(seed)
        model.to(dtype=next(self.model.parameters()).dtype, device=self.device)
        return self._like(model, f"fresh weights, seed {seed}")

    def refit(self, examples: Dataset) -> None:
        """Take the scales of a table's columns from these examples alone."""
        self.inputs = self.inputs.refit(examples)

    def copy(self) -> Predictor:
        """Return an independent deep copy."""
        return self._like(copy.deepcopy(self.model), self.source)

    def _like(self, model: nn.Module, source: str) -> Predictor:
        other = copy.copy(self)
        other.model, other.source, other.cost = model, source, Cost()
        return other

    def _plain(self) -> Any:
        """The model itself, inside its adapters if there are any."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    # ---- adapters --------------------------------------------------------------------------------------------------

    def wrap_lora(self, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str = "all-linear") -> None:
        """Freeze the weights and add low-rank adapters (peft) to every linear layer but the head, or to the named ones.

        A model without linear layers of its own gets them at its convolutions. Layers that share their weights get
        none: folded in, an adapter of one of them would change the others as well.

        Raises:
            BadInput: there are no such layers, or the named ones share their weights.
        """
        from peft import LoraConfig, get_peft_model

        names: Any = targets if isinstance(targets, str) else list(targets)
        holders = Counter(id(p) for module in self.model.modules() for p in module.parameters(recurse=False))
        shared = {id(p): name for name, p in self.model.named_parameters() if holders[id(p)] > 1}
        if targets == "all-linear":
            kinds: dict[type, list[str]] = {nn.Linear: [], nn.Conv2d: []}
            for name, module in self.model.named_modules():
                if type(module) in kinds and name != self._head and id(module.weight) not in shared:
                    kinds[type(module)].append(name)
            names = kinds[nn.Linear] or kinds[nn.Conv2d]
            if not names:
                what = "are all linear layers, and the model has none of its own but the head, nor convolutions"
                raise BadInput(Problem("lora targets", what, "train without adapters"))
        settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
        try:
            self.model = get_peft_model(self.model, settings)
        except ValueError as error:
            raise BadInput(Problem("lora targets", first_line(error), "name linear layers of this model")) from error
        wrapped = [module for module in self.model.modules() if hasattr(module, "lora_A")]
        if tied := [shared[id(p)] for m in wrapped for p in m.base_layer.parameters() if id(p) in shared]:
            what = f"hold weights that other layers share, such as {tied[0]}, which an adapter of one would change too"
            raise BadInput(Problem("lora targets", what, "name other layers, or train without adapters"))

    def merge_lora(self) -> None:
        """Fold the adapters into the weights; what is left is a plain model, all of whose weights can train."""
        if hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload().requires_grad_(True)

    # ---- one forward pass ------------------------------------------------------------------------------------------

    @property
    def outcomes(self) -> int | None:
        """Number of classes; None for numbers."""
        return self.outcome.width if isinstance(self.outcome, Classes) else None

    @property
    def mixes_examples(self) -> bool:
        """Whether what training does with one example depends on the others of its batch (batch normalisation)."""
        return bool(self._mixing)

    @property
    def varies(self) -> bool:
        """Whether training sees changed examples."""
        return self.inputs.varies

    def varied(self, encoded: LabelledExamples, seed: int) -> LabelledExamples:
        """Return examples as training sees them: augmented by (seed, id)."""
        if not self.varies:
            return encoded
        changed = self.inputs.vary(encoded.inputs, encoded.ids, seed)
        return LabelledExamples(encoded.ids, changed, encoded.targets)

    def encode(self, examples: Dataset) -> LabelledExamples:
        """Turn an example set into inputs and targets.

        Raises:
            BadInput: what is wrong with its inputs and with its labels, at once.
        """
        return Reading(self.inputs, self.outcome).encode(examples)

    def batch(self, encoded: LabelledExamples) -> dict[str, Tensor]:
        """Return what the model is called with, on its device: tensors with a leading batch dimension."""
        return self.inputs.batch(encoded.inputs, self.device)

    def predict(self, batch: Mapping[str, Tensor], forward: Callable[..., Any] | None = None) -> Tensor:
        """Call the model and return (B, C) logits or (B, D) numbers in float32.

        A pure function of the batch and of what ``forward`` closes over, so that it can be mapped and differentiated
        (``torch.func``), where the model's own code can be: transformers' text models look into their masks, which
        ``vmap`` does not allow. Nothing is accounted.

        Args:
            batch: from ``batch``.
            forward: what to call instead of the model, with the model's own arguments.
        """
        call = forward or self.model
        # Inputs are made in float32; few modules take them in another precision than their weights have.
        precision = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        batch = {name: value.to(precision) if value.is_floating_point() else value for name, value in batch.items()}
        with self._one_by_one(len(next(iter(batch.values())))):
            if isinstance(self._plain(), PreTrainedModel):
                output = call(**batch)
            else:
                output = call(*batch.values())
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if logits is None:
            what = f"gives a {type(output).__name__}, neither a tensor nor an object with logits"
            raise UnsupportedModel(Problem(type(self._plain()).__name__, what, "return the logits"))
        logits = logits.unsqueeze(-1) if logits.dim() == 1 else logits
        if logits.dim() != 2 or logits.shape[-1] != self.outcome.width:
            what = f"gives outputs of shape {tuple(logits.shape)} for {self.outcome.width} per example"
            raise UnsupportedModel(Problem(type(self._plain()).__name__, what, "give the model's own classes"))
        return logits.float()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,) losses: cross-entropy in nats, or the squared error averaged over the numbers."""
        if isinstance(self.outcome, Numbers):
            return (logits - targets).square().mean(-1)
        return F.cross_entropy(logits, targets, reduction="none")

    def statistics(
        self,
        encoded: LabelledExamples,
        *,
        positions: Positions = "answer",
        forward: nn.Module | None = None,
        hidden: bool = False,
        blocks: Sequence[int] = (),
        logits: bool = True,
        rows_only: bool = False,
    ) -> Statistics:
        """Run one forward pass; one row per example, whichever positions are asked for.

        Args:
            encoded: the batch.
            positions: without meaning here.
            forward: what to call instead of the model.
            hidden: also return the head's input, (B, H): the features that the last linear layer classifies.
            blocks: also return what these calls of nonlinearities give out, (B, ...) each, see ``nonlinearities_of``.
            logits: without meaning here.
            rows_only: without meaning here.

        Returns:
            ``Statistics`` for classes, ``RegressionStatistics`` for numbers; gradients flow unless switched off.

        Raises:
            UnsupportedModel: a nonlinearity that the model does not call.
        """
        batch = self.batch(encoded)
        wanted = sorted(set(blocks))
        with (
            calls_of(self.head_module() if hidden else None) as seen,
            nonlinearities_of(self.model, wanted) as outputs,
            self._counted(batch),
        ):
            found = self.predict(batch, forward)
        if len(outputs) != len(wanted):
            what = f"calls {len(outputs)} of the nonlinearities {', '.join(map(str, wanted))} that are read"
            raise UnsupportedModel(Problem(f"a {self.kind}", what, "use a method that reads predictions"))
        self._account(encoded, batch)
        size = len(encoded)
        kind = RegressionStatistics if isinstance(self.outcome, Numbers) else Statistics
        return kind(
            logits=found,
            targets=encoded.targets.to(found.device),
            example=torch.arange(size, device=found.device),
            counts=torch.ones(size, dtype=torch.int64, device=found.device),
            ids=encoded.ids,
            hidden=read_rows(seen, found) if hidden else None,
            blocks=dict(zip(wanted, outputs, strict=True)),
        )

    def nonlinearities(self, encoded: LabelledExamples) -> list[torch.Size]:
        """Return the shapes of what the model's nonlinearities give out for a batch, in the order of their calls."""
        with self.asked(), nonlinearities_of(self.model, None) as outputs:
            self.predict(self.batch(encoded))
        return [output.shape for output in outputs]

    def _one_by_one(self, size: int) -> AbstractContextManager[None]:
        return without_batch_statistics(self._plain(), self._mixing) if size == 1 else nullcontext()

    def head_module(self) -> nn.Module | None:
        """Return the last linear layer that has one output per class or number; None where there is none."""
        return None if self._head is None else self._plain().get_submodule(self._head)

    def head(self, hidden: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Map (B, H) features to (B, C) float32 outputs."""
        assert self._head is not None
        found: Tensor = torch.func.functional_call(self._plain().get_submodule(self._head), weights, (hidden,))
        return found.float()

    @property
    def tokens_per_forward(self) -> int:
        """Examples of one size, or tokens of texts, that a forward pass without gradients may take."""
        if isinstance(self.inputs, TextInputs):
            return FORWARD_TOKENS
        size = getattr(self.inputs, "size", None)
        numbers = 3 * size[0] * size[1] if size else getattr(self.inputs, "width", 3 * 32 * 32)
        return max(16, min(2048, FORWARD_NUMBERS // max(1, numbers)))

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

    def observe(self, encoded: LabelledExamples) -> Predictions:
        """Run one pass in evaluation mode, without augmentation, and return everything it says, in the order given."""
        parts: list[tuple[list[int], Statistics]] = []
        with self.asked():
            lengths = [encoded.length(i) for i in range(len(encoded))]
            for indices in length_batches(lengths, self.tokens_per_forward):
                parts.append((indices, self.statistics(encoded.take(indices), hidden=True)))
        order = torch.argsort(torch.tensor([i for indices, _ in parts for i in indices]))
        outputs = torch.cat([stats.logits for _, stats in parts])[order].double().cpu().numpy()
        rows = [stats.hidden for _, stats in parts]
        known = [row for row in rows if row is not None]
        return Predictions(
            ids=list(encoded.ids),
            outputs=outputs,
            targets=encoded.targets.cpu().numpy(),
            features=torch.cat(known)[order].float().cpu().numpy() if known and len(known) == len(rows) else None,
            classes=self.outcome.names if isinstance(self.outcome, Classes) else (),
            centre=self.outcome.centre if isinstance(self.outcome, Numbers) else (),
            scale=self.outcome.scale if isinstance(self.outcome, Numbers) else (),
        )

    def score(self, rows: Sequence[ExampleRow]) -> list[ExampleScore]:
        """Score single examples, in evaluation mode."""
        out: list[ExampleScore | None] = [None] * len(rows)
        for examples, positions in by_set(rows):
            found = self.observe(self.encode(examples.select([rows[k].index for k in positions])))
            for k, nll in zip(positions, found.nll.tolist(), strict=True):
                out[k] = ExampleScore(nll)
        return [score for score in out if score is not None]

    def answer_nll(self, rows: Sequence[ExampleRow]) -> Tensor:
        """Return the loss averaged over examples; gradients flow."""
        parts = [
            self.statistics(self.encode(examples.select([rows[k].index for k in positions]))).nll
            for examples, positions in by_set(rows)
        ]
        return torch.cat(parts).mean()

    # ---- accounts --------------------------------------------------------------------------------------------------

    @contextmanager
    def _counted(self, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Count the operations of the first forward pass; later ones are taken to cost as much per input number."""
        if self._flops_per_number:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops_per_number = counter.get_total_flops() / next(iter(batch.values())).numel()

    def _account(self, encoded: LabelledExamples, batch: Mapping[str, Tensor]) -> None:
        training = torch.is_grad_enabled()
        numbers = next(iter(batch.values())).numel()
        padded = numbers if isinstance(self.inputs, TextInputs) else len(encoded)
        self.cost.forwards += 1
        self.cost.backwards += int(training)
        self.cost.sequences += len(encoded)
        self.cost.tokens += sum(encoded.length(i) for i in range(len(encoded)))
        self.cost.padded_tokens += padded
        # A backward costs one forward for the gradient of the inputs and one for that of the weights, if they train.
        self.cost.flops += self._flops_per_number * numbers * (2 + self._trained_share() if training else 1)

    def _trained_share(self) -> float:
        parameters = [(p.numel(), p.requires_grad) for p in self.model.parameters() if p.dim() > 1]
        return sum(n for n, trained in parameters if trained) / max(1, sum(n for n, _ in parameters))
