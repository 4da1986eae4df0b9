"""UNSIR: impair a class with noise that the model finds least like it, then repair the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, Run
from expunge.methods.stages import Stage, StagedMethod
from expunge.requests.places import some
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.examples import EncodedExamples, LabelledExamples
from expunge.tasks.image_inputs import ImageInputs
from expunge.tasks.outcomes import LABEL
from expunge.tasks.predictor import Predictor
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.plan import draw


class UnsirConfig(MethodConfig):
    """Hyperparameters of UNSIR; defaults of the authors' notebook on CIFAR-10."""

    noise_images: PositiveInt = Field(256, description="noise inputs that are made for each class to forget")
    noise_repeats: PositiveInt = Field(20, description="how often each of them is in the set that impairs")
    noise_steps: PositiveInt = Field(40, description="steps of gradient ascent that make the noise; 25 in later code")
    noise_learning_rate: PositiveFloat = Field(0.1, description="learning rate of these steps (Adam)")
    noise_penalty: float = Field(0.1, ge=0, description="weight of the noise's mean squared length")
    retain_per_class: PositiveInt = Field(1000, description="examples of each kept class that are trained on, at most")
    impair_epochs: PositiveInt = Field(1, description="passes over noise and kept examples")
    repair_epochs: PositiveInt = Field(1, description="passes over the kept examples alone, afterwards")
    repair_rate: PositiveFloat = Field(
        0.5, description="learning rate of the repair, as a multiple of the impairment's"
    )
    parity: bool = Field(
        False,
        description="reproduce the reference: of each noise batch only as many inputs as an image has channels, all "
        "labelled with the first class to forget",
    )


def noise_loss(logits: Tensor, noise: Tensor, label: int, penalty: float) -> Tensor:
    """Return ``-CE(f(Z), c) + w mean_b ||Z_b||^2``, a scalar; minimising it makes Z unlike class c.

    Args:
        logits: (B, C) of the noise.
        noise: (B, ...).
        label: c.
        penalty: w.
    """
    target = torch.full((len(logits),), label, device=logits.device)
    return -F.cross_entropy(logits, target) + penalty * noise.flatten(1).square().sum(1).mean()


def make_noise(
    predict: Callable[[Tensor], Tensor], start: Tensor, label: int, *, steps: int, learning_rate: float, penalty: float
) -> Tensor:
    """Return inputs (B, ...) on which a frozen model's loss of a class is large: Adam on ``noise_loss``.

    Args:
        predict: maps inputs (B, ...) to logits (B, C).
        start: where the ascent starts, (B, ...) standard normal numbers.
        label: the class.
        steps, learning_rate, penalty: see ``UnsirConfig``.
    """
    noise = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([noise], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(noise_loss(predict(noise), noise, label, penalty), noise)
            noise.grad = gradient
            optimizer.step()
    return noise.detach()


class Unsir(StagedMethod):
    """Impair: CE on noise labelled with the class and on kept examples. Repair: CE on the kept examples.

    The noise is made against the model before unlearning, in evaluation mode and in the space that its inputs are
    normalised to, to have a large loss for the class; learning it as that class then breaks the weights that carry it.
    Of the forget set nothing but the labels is read: which classes are to go. ``learning_rate`` is that of the
    impairment; later code uses 1e-4 for both phases.

    The reference walks over the channels of a noise batch where it means its images, so that a set of 20 x 3 noise
    images comes out where 20 x 256 are meant, and labels all of them with one class (``parity=True``).

    Source: Tarun et al. 2023, Fast Yet Effective Machine Unlearning (arXiv 2111.08947), section 4.
    """

    id = "unsir"
    title = "impair a class with error-maximising noise, then repair the rest; reads no example of the class"
    tasks: ClassVar[tuple[str, ...]] = ("image_classifier", "tabular_classifier")
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    paper = "Tarun et al. 2023, Fast Yet Effective Machine Unlearning, arXiv:2111.08947"
    train_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.02, "batch_size": 256, "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant",
        "clip_norm": None,
    }  # fmt: skip
    Config: ClassVar[type[MethodConfig]] = UnsirConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also classes that are to be forgotten and kept.

        Raises:
            BadInput: every problem.
        """
        super().check(task, request)
        assert request.retain is not None
        if any(LABEL not in examples.column_names for examples in (request.forget, request.retain)):
            return  # reading the sets says so
        shared = sorted({str(v) for v in request.forget[LABEL]} & {str(v) for v in request.retain[LABEL]})
        if shared:
            what = f"forgets whole classes, and of {some(shared)} the retain set holds examples too"
            fix = "move them to the forget set, or use a method that forgets single examples"
            raise BadInput(Problem(f"method {self.id}", what, fix))

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def objective(self) -> Objective:
        """What impairs: CE on noise and kept examples, which stand in the forget set's place."""
        return Objective((Term("impair_nll", ("forget",), nll, "token_mean"),))

    def stages(self, task: Task, run: Run) -> Sequence[Stage]:
        """Impair, then repair."""
        config = self.config
        repair = Objective((Term("repair_nll", ("retain",), nll, "token_mean"),), anchor="retain")
        rate = run.train.learning_rate * config.repair_rate
        return [
            Stage("impair", self.objective(), {"epochs": config.impair_epochs}),
            Stage("repair", repair, {"epochs": config.repair_epochs, "learning_rate": rate}),
        ]

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the kept examples, for the impairment with the noise before them."""
        assert isinstance(model, Predictor)
        assert request.retain is not None
        kept = _some_of_each_class(model.encode(request.retain), self.config.retain_per_class, run.train.seed)
        if stream == "retain":
            return kept
        classes = sorted({int(label) for label in model.outcome.encode(request.forget)})
        run.notes["noise"] = {"classes": classes}
        kept = _as_numbers(kept)
        return self._noise(model, classes, kept, run.train.seed) + kept

    def _noise(self, model: Predictor, classes: Sequence[int], like: LabelledExamples, seed: int) -> LabelledExamples:
        """Return the noise of every class, with the pixels or features that give it after normalisation."""
        config, device = self.config, model.device
        assert isinstance(like.inputs, Tensor)
        name = next(iter(model.batch(like.take([0]))))
        model.model.eval()
        parts: list[LabelledExamples] = []
        for label in classes:
            generator = torch.Generator().manual_seed(draw(seed, "noise", label) % 2**63)
            start = torch.randn((config.noise_images, *like.inputs.shape[1:]), generator=generator).to(device)
            made = make_noise(
                lambda noise: model.predict({name: noise}), start, label, steps=config.noise_steps,
                learning_rate=config.noise_learning_rate, penalty=config.noise_penalty,
            ).cpu()  # fmt: skip
            model.cost.forwards += config.noise_steps
            model.cost.backwards += config.noise_steps
            if isinstance(model.inputs, ImageInputs):
                mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (model.inputs.mean, model.inputs.std))
                made = made * std + mean
            if config.parity:
                made = made[: made.shape[1]]
            count, shown = len(made), classes[0] if config.parity else label
            ids = [f"noise-{label}-{k}-{again}" for again in range(config.noise_repeats) for k in range(count)]
            inputs = made.repeat(config.noise_repeats, *[1] * (made.dim() - 1))
            parts.append(LabelledExamples(ids, inputs, torch.full((len(ids),), shown)))
        return sum(parts[1:], parts[0])


def _some_of_each_class(encoded: LabelledExamples, most: int, seed: int) -> LabelledExamples:
    """Return up to so many examples of each class, drawn by (seed, id)."""
    taken: dict[int, int] = {}
    chosen: list[int] = []
    labels = encoded.targets.tolist()
    for index in sorted(range(len(encoded)), key=lambda i: (draw(seed, "kept", encoded.ids[i]), encoded.ids[i])):
        count = taken.get(labels[index], 0)
        if count < most:
            taken[labels[index]] = count + 1
            chosen.append(index)
    return encoded.take(sorted(chosen))


def _as_numbers(encoded: LabelledExamples) -> LabelledExamples:
    """Return examples whose pixels are fractions, as noise is; what the model sees of them stays the same."""
    assert isinstance(encoded.inputs, Tensor)
    if encoded.inputs.dtype != torch.uint8:
        return encoded
    return LabelledExamples(encoded.ids, encoded.inputs.float() / 255, encoded.targets)
