"""DiffROAR and BlockMNIST: do input gradients point at what a model learns from, plainly or robustly trained?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn

from expunge.audits.classification.input_gradients import SIGNAL_BOX, InputGradients, mass_inside
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.data import known_sets
from expunge.data.block_mnist import Signal, block_images
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.classifier_world import DIGITS, predictor
from expunge.reproductions.matched import compare
from expunge.requests.request import DeletionRequest
from expunge.tasks.attribution import input_gradients
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor
from expunge.training.adversarial import Adversary, trained_anew
from expunge.training.settings import TrainSettings

FRACTIONS = (0.1, 0.25)
TRAININGS = ("standard", "robust")


@dataclass(frozen=True)
class Place:
    """A set of digits, and how its models are trained.

    Attributes:
        noise: standard deviation of the noise on the pixels of the blocks.
        eps: L2 norm within which the adversary moves an image.
        epochs, copies: passes of the models, and of the copies that DiffROAR trains.
        limit: training images; quick runs use fewer.
    """

    noise: float
    eps: float
    epochs: int
    copies: int
    limit: int


PLACES: Mapping[str, Place] = {
    "digits": Place(noise=0.1, eps=1.0, epochs=30, copies=20, limit=1200),
    "mnist": Place(noise=0.0, eps=2.0, epochs=6, copies=4, limit=6000),
}


class InputGradientsReproduction(Reproduction):
    """The same networks trained plainly and on what an adversary has moved, and the gradients of both.

    BlockMNIST: a digit and a hollow square on top of each other, either above; BlockMNIST-Top has the digit always
    above. Of MNIST's 10,000 digits (four fifths for training) and of scikit-learn's, 8 x 8 pixels. A network of two
    hidden layers of 256; the adversary takes 5 steps of half of its L2 reach. Which share of the gradient of the
    predicted class's logit lies on the digit, where half would by chance; and DiffROAR: fresh copies are trained on the
    pixels of largest, and on those of smallest gradient. The analysed setting of the paper: x = y e_j, a hidden layer
    of 1000 (theirs 25,000), and whether the signal's coordinate has the largest gradient, less whether it has the
    smallest.
    """

    id = "input_gradients"
    title = "what input gradients highlight after plain and after adversarial training (DiffROAR, BlockMNIST)"
    paper = "Shah et al. 2021, Do Input Gradients Highlight Discriminative Features?, arXiv:2102.12781"
    claim = (
        "Gradients of plainly trained models highlight what does not predict, because features leak from other "
        "examples; those of adversarially trained models highlight what does"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for name in PLACES:
            if name == "digits" or not bench.quick:
                found |= blocks(name, seed, bench)
        bench.progress.stage("the analysed setting")
        for training in TRAININGS:
            eps = 0.45 if training == "robust" else 0.0
            seen = analysed(seed, eps, width=100 if bench.quick else 1000, epochs=30 if bench.quick else 3000)
            found |= {f"analysed_{training}_{key}": value for key, value in seen.items()}
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        checks: list[Check] = []
        for name in PLACES:
            if f"{name}_standard_mass" in runs[0]:
                checks += _judged(name, runs)
        plain, robust = (column(runs, f"analysed_{t}_quality") for t in TRAININGS)
        return [
            *checks,
            Check(
                "in the analysed setting, plain training hides the signal's coordinate and robust training shows it",
                max(plain) < 0.25 and min(robust) > 0.9,
                f"largest less smallest gradient at the signal: {_each(plain)} plainly trained, {_each(robust)} "
                f"robustly; |cosine| of gradient and input {mean(runs, 'analysed_standard_cosine'):.2f} and "
                f"{mean(runs, 'analysed_robust_cosine'):.2f}",
            ),
        ]


def _judged(name: str, runs: Sequence[Mapping[str, float]]) -> list[Check]:
    plain = [(run[f"{name}_standard_diffroar_25"], run[f"{name}_random_diffroar_25"]) for run in runs]
    shown = ", ".join(f"{a:+.3f} against {b:+.3f}" for a, b in plain)
    mass = column(runs, f"{name}_standard_mass")
    return [
        compare(
            f"{name}: more of the gradient lies on the digit after robust training",
            runs, f"{name}_robust_mass", f"{name}_standard_mass",
        ),
        Check(
            f"{name}: after plain training it lies on the digit hardly more than by chance",
            max(mass) < 0.6,
            f"share on the digit {_each(mass)}; half of the pixels are its",
        ),
        compare(
            f"{name}: plain gradients lie on the digit more where it is always above (no leakage from other images)",
            runs, f"{name}_top_mass", f"{name}_standard_mass",
        ),
        compare(
            f"{name}: DiffROAR at 10 % is higher after robust training",
            runs, f"{name}_robust_diffroar_10", f"{name}_standard_diffroar_10",
            "the few pixels of largest gradient lie on the digit after plain training too",
        ),
        compare(
            f"{name}: DiffROAR at 25 % is higher after robust training",
            runs, f"{name}_robust_diffroar_25", f"{name}_standard_diffroar_25",
        ),
        Check(
            f"{name}: after plain training DiffROAR at 25 % is no better than that of a random ranking",
            all(a < b + 0.05 for a, b in plain),
            f"{shown} at random"
            + ("" if all(a < b + 0.05 for a, b in plain) else "; small dense networks on few images leak less than "
               "the papers', and the largest gradients do lie on strokes"),
        ),
    ]  # fmt: skip


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def digit_images(name: str, split: Any, seed: int, data: Path | None, limit: int) -> Dataset:
    """Return digits of a set: scikit-learn's without noise, or MNIST's.

    Raises:
        BadInput: MNIST is not in the folder of the data.
    """
    if name == "digits":
        return known_sets.digits(split, 0.0, seed)
    return known_sets.mnist10k(split, data, limit)


def blocks(name: str, seed: int, bench: Workbench) -> dict[str, float]:
    """Train on BlockMNIST of a set and look at the gradients."""
    place = PLACES[name]
    limit = 400 if bench.quick else place.limit
    digits = {split: digit_images(name, split, seed, bench.data, limit) for split in ("train", "test")}
    digits = {split: part.select(range(min(limit, len(part)))) for split, part in digits.items()}
    edge = 8 if name == "digits" else 28
    sizes = {"inputs": 2 * edge * edge, "outputs": 10, "hidden": [256, 256]}
    factory = Factory("expunge.tasks.mlp:mlp", sizes)
    task = Predictor.of_images(factory.make(seed), DIGITS, factory=factory, channels=1)
    settings = TrainSettings(
        epochs=2 if bench.quick else place.epochs, batch_size=64, learning_rate=1e-3, warmup=0.1, schedule="cosine",
        weight_decay=0.0, seed=seed,
    )  # fmt: skip
    found: dict[str, float] = {}

    def sets(signal: Signal) -> tuple[Dataset, Dataset]:
        train, test = (block_images(digits[s], signal, noise=place.noise, seed=seed) for s in ("train", "test"))
        return train, test

    train, test = sets("either")
    for training in TRAININGS:
        bench.progress.stage(f"{name}: {training} training")
        adversary = Adversary(norm="l2", eps=place.eps, steps=5, step=0.5) if training == "robust" else None
        model = trained_anew(task, task.encode(train), settings, adversary)
        found[f"{name}_{training}_accuracy"] = _accuracy(model, test)
        found[f"{name}_{training}_mass"] = mass_on_signal(model, test)
        bench.progress.stage(f"{name}: DiffROAR after {training} training")
        audit = InputGradients(
            InputGradients.Config(
                fractions=FRACTIONS, control=training == "standard", epochs=1 if bench.quick else place.copies
            )
        )
        finding = run_one(audit, Observations({"unlearned": model}, DeletionRequest(test, train), seed=seed))
        for ranking, kept, _, _, value in finding.tables[0].rows:
            who = "random" if ranking == "random" else training
            found[f"{name}_{who}_diffroar_{kept.rstrip('%')}"] = value
    above, above_test = sets("top")
    model = trained_anew(task, task.encode(above), settings)
    found[f"{name}_top_accuracy"] = _accuracy(model, above_test)
    found[f"{name}_top_mass"] = mass_on_signal(model, above_test)
    return found


def _accuracy(model: Any, examples: Dataset) -> float:
    return float(predictor(model).observe(model.encode(examples)).correct.mean())


def mass_on_signal(model: Predictor, examples: Dataset) -> float:
    """Return the mean share of the gradient of the predicted logit that lies where the signal is."""
    encoded = model.encode(examples)
    said = torch.from_numpy(model.observe(encoded).predicted)
    magnitude = input_gradients(model, encoded.with_targets(said)).abs().sum(1)
    return float(mass_inside(magnitude, list(examples[SIGNAL_BOX]))[0].mean())


def analysed(seed: int, eps: float, *, width: int, epochs: int, dimensions: int = 10) -> dict[str, float]:
    """Train f(x) = v . relu(W x + b) + c on x = y e_j, and look at its gradients there.

    Args:
        seed: of the weights.
        eps: L2 reach of the adversary in training; 0 for none.
        width: of the hidden layer.
        epochs: full-batch gradient steps of rate 0.1.
        dimensions: of x.

    Returns:
        "quality": how often the signal's coordinate has the largest gradient, less how often the smallest;
        "cosine": mean |cosine| of x and the gradient; "accuracy".
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(dimensions, width), nn.ReLU(), nn.Linear(width, 1))
    weights = list(network.parameters())
    x = torch.cat([torch.eye(dimensions), -torch.eye(dimensions)])
    y = torch.cat([torch.ones(dimensions), -torch.ones(dimensions)])

    def function(inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = network(inputs)[:, 0]
        return outputs

    def slope(inputs: torch.Tensor) -> torch.Tensor:
        at = inputs.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(function(at).sum(), at)
        return gradient

    for _ in range(epochs):
        moved = x
        for _ in range(8 if eps else 0):
            # The loss falls with y f, so that it rises fastest against y times the gradient of f.
            against = -y[:, None] * slope(moved)
            delta = moved + 0.25 * eps * F.normalize(against, dim=1) - x
            moved = x + delta * (eps / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)
        loss = F.softplus(-y * function(moved)).mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(gradient, alpha=0.1)
    magnitude, signal = slope(x).abs(), x.abs().argmax(1)
    largest, smallest = (magnitude.argmax(1) == signal).float(), (magnitude.argmin(1) == signal).float()
    with torch.no_grad():
        right = (function(x).sign() == y).float().mean()
    return {
        "quality": float(largest.mean() - smallest.mean()),
        "cosine": float(F.cosine_similarity(x, slope(x), dim=1).abs().mean()),
        "accuracy": float(right),
    }
