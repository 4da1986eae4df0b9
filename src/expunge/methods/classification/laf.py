"""Label-agnostic forgetting: move representations off the forget set's own distribution, without any label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from expunge.errors import BadInput, Problem
from expunge.methods.base import MethodConfig, Run
from expunge.methods.classification.nearest_mean import features_of
from expunge.methods.stages import Stage, StagedMethod
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.examples import EncodedExamples
from expunge.tasks.kinds import CLASSIFIERS
from expunge.tasks.predictor import Predictor
from expunge.tasks.statistics import Statistics
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.plan import draw


class LAFConfig(MethodConfig):
    """Hyperparameters of LAF; defaults of the authors' runs that forget random examples of CIFAR-10."""

    unlearn_rate: PositiveFloat = Field(
        0.25, description="learning rate of the steps that leave the forget set, as a multiple of those that align"
    )
    temperature: PositiveFloat = Field(
        20.0, description="tau of the alignment: smaller, and the distance of the forget set weighs more; 5 to 20"
    )
    unlearn_weight: float = Field(1.0, ge=0, description="0 leaves the steps that leave the forget set out")
    align_weight: float = Field(1.0, ge=0, description="0 leaves the steps that align out")
    latent: PositiveInt = Field(16, description="latent size of the autoencoders; 8 for MNIST")
    vae_epochs: PositiveInt = Field(10, description="passes over the embeddings that fit the autoencoders")
    vae_learning_rate: PositiveFloat = Field(1e-3, description="learning rate of the autoencoders (Adam)")
    vae_batch_size: PositiveInt = Field(32, description="batch size of the autoencoders")
    kl_weight: float = Field(0.025, ge=0, description="weight of the autoencoders' KL divergence")
    repair_epochs: int = Field(
        0, ge=0, description="LAF+R: passes over the labelled retain set, at the end, that train the head alone"
    )
    parity: bool = Field(
        False,
        description="reproduce the reference: autoencoders with sigmoid outputs on raw embeddings, summed distances",
    )


class Autoencoder(nn.Module):
    """The variational autoencoder of the paper: H-128-32-latent-32-128-H with ReLU.

    Args:
        width: H, of the embeddings.
        latent: L.
        sigmoid: squash outputs into (0, 1), as the reference does, which cannot reach embeddings beyond.
    """

    def __init__(self, width: int, latent: int, sigmoid: bool = False):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, width)
        )
        self.latent, self.squash = latent, nn.Sigmoid() if sigmoid else nn.Identity()

    def forward(self, embeddings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (B, H) reconstructions, (B, L) means and (B, L) standard deviations of the latent codes.

        Args:
            embeddings: (B, H).
            noise: (B, L) standard normal numbers.
        """
        mean, log_variance = self.encoder(embeddings).chunk(2, -1)
        deviation = (0.5 * log_variance).exp()
        return self.squash(self.decoder(mean + deviation * noise)), mean, deviation


def vae_loss(embeddings: Tensor, reconstructed: Tensor, mean: Tensor, deviation: Tensor, kl_weight: float) -> Tensor:
    """Return ``1/B sum ||v(e) - e||^2 + w KL(N(mean, deviation^2) || N(0, 1))``, a scalar.

    Args:
        embeddings, reconstructed: (B, H).
        mean, deviation: (B, L).
        kl_weight: w.
    """
    divergence = -0.5 * ((deviation.square() + 1e-8).log() + 1 - mean.square() - deviation.square()).sum(-1)
    return ((reconstructed - embeddings).square().sum(-1) + kl_weight * divergence).mean()


def bounded(distance: Tensor) -> Tensor:
    """Return ``exp(d / (d + 1))``, which grows from 1 to e; any shape, distances of 0 or more."""
    return (distance / (distance + 1)).exp()


def alignment_loss(
    retain: Tensor, retain_before: Tensor, forget: Tensor, forget_before: Tensor, temperature: float
) -> Tensor:
    """Return (R,) ``c_i - log sum_j exp(c_j / tau)`` with ``c = 1 - cos(now, before)``, j over the forget examples.

    Args:
        retain, retain_before: (R, H) embeddings to stay where they were.
        forget, forget_before: (F, H) embeddings to turn away from where they were.
        temperature: tau.
    """
    stay = 1 - F.cosine_similarity(retain, retain_before.detach(), dim=-1)
    away = 1 - F.cosine_similarity(forget, forget_before.detach(), dim=-1)
    return stay - torch.logsumexp(away / temperature, 0)


@dataclass(frozen=True)
class Density:
    """A fitted autoencoder: how far an embedding is from the distribution that it was fitted to.

    Attributes:
        autoencoder: fitted and frozen.
        centre, scale: embeddings less the one, divided by the other, are what it was fitted to.
        summed: distances are sums over the H numbers instead of means.
    """

    autoencoder: Autoencoder
    centre: Tensor
    scale: Tensor
    summed: bool = False

    def distance(self, embeddings: Tensor, noise: Tensor) -> Tensor:
        """Return (B,) ``||v(e) - e||^2``; gradients reach the embeddings.

        Args:
            embeddings: (B, H).
            noise: (B, L) standard normal numbers.
        """
        scaled = (embeddings - self.centre) / self.scale
        squared = (self.autoencoder(scaled, noise)[0] - scaled).square()
        return squared.sum(-1) if self.summed else squared.mean(-1)


def fit(embeddings: Tensor, centre: Tensor, scale: Tensor, config: LAFConfig, seed: int) -> Density:
    """Fit an autoencoder to embeddings with Adam.

    Args:
        embeddings: (N, H).
        centre, scale: see ``Density``.
        config: says how.
        seed: of its weights, batches and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(embeddings.shape[1], config.latent, config.parity)
    model.to(embeddings.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.vae_learning_rate)
    data = ((embeddings - centre) / scale).detach()
    with torch.enable_grad():
        for _ in range(config.vae_epochs):
            for batch in torch.randperm(len(data), generator=generator).split(config.vae_batch_size):
                part = data[batch.to(data.device)]
                noise = torch.randn(len(part), config.latent, generator=generator).to(part)
                reconstructed, mean, deviation = model(part, noise)
                loss = vae_loss(part, reconstructed, mean, deviation, config.kl_weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.requires_grad_(False).eval()
    return Density(model, centre, scale, config.parity)


class LAF(StagedMethod):
    """On every pair of batches two steps in turn, each with an Adam of its own; no label is read.

    1. Leave: ``mean_retain phi(||h(e) - e||^2) - mean_forget phi(||h_f(e) - e||^2)``, ``phi(d) = exp(d / (d + 1))``,
       e the embedding (the head's input), h and h_f variational autoencoders of the original embeddings of all data and
       of the forget set.
    2. Align: ``alignment_loss`` with the original embeddings.

    Learned embeddings are not bounded and the authors' sigmoid decoder cannot reach them: phi is then flat. Here
    embeddings are centred and scaled to a mean variance of 1, the decoder is linear, and ||.||^2 is a mean over the H
    numbers, so that phi is where it has a slope (``parity=True`` does as the authors). Their losses are sums over a
    batch, ours means: Adam does not see the difference. The model trains in evaluation mode, as theirs does, so batch
    normalisation stays as it was. The head gets no gradient from either step; ``repair_epochs`` trains it alone
    afterwards on the labels of the retain set (LAF+R).

    The balance of the two learning rates and tau decides everything: too much alignment undoes the forgetting, a tau
    near 1 lets the forget set outweigh what is kept. ``learning_rate`` is that of the alignment.

    Source: Shen et al. 2024, section 3 and appendix; the authors' code.
    """

    id = "laf"
    title = "move representations off the forget set's distribution; reads no labels"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = (
        "Shen et al. 2024, Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models, arXiv:2404.00506"
    )
    train_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 4e-5, "epochs": 40, "batch_size": 32, "weight_decay": 0.0, "warmup": 0.0,
        "schedule": "constant", "clip_norm": None,
    }  # fmt: skip
    Config: ClassVar[type[MethodConfig]] = LAFConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also a model without a linear head, and weights that leave nothing to do.

        Raises:
            BadInput: every problem.
        """
        super().check(task, request)
        problems = []
        # One that is only described, and not loaded yet, has no head to look at.
        if isinstance(task, Predictor) and task.head_module() is None:
            what = "needs a linear head, whose input is the embedding, and the model has none"
            problems.append(Problem(f"method {self.id}", what, "use random_label or another method"))
        if not self.config.unlearn_weight and not self.config.align_weight:
            what = "are both 0, so nothing would be forgotten"
            problems.append(Problem("unlearn_weight and align_weight", what, "raise one of them"))
        if problems:
            raise BadInput(problems)

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def objective(self) -> Objective:
        """Both turns; the autoencoders are only known with the data."""
        return self._turns({})

    def stages(self, task: Task, run: Run) -> Sequence[Stage]:
        """Both turns, and the training of the head if it is asked for.

        Raises:
            BadInput: the head is to be trained while adapters stand in for the weights.
        """
        config, train = self.config, run.train
        self._embeddings: dict[str, Tensor] = {}
        self._densities: dict[str, Density] = {}
        found = [Stage("forget", self._turns(self._densities))]
        if config.repair_epochs:
            if train.lora is not None:
                what = "trains the head, and adapters leave the head as it is"
                raise BadInput(Problem("repair_epochs", what, "leave out one of repair_epochs and lora"))
            repair = Objective((Term("retain_nll", ("retain",), nll, "token_mean"),), anchor="retain")
            head = dict.fromkeys(task.head_parameters())
            found.append(Stage("repair", repair, {"epochs": config.repair_epochs}, head))
        return found

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the examples of a stream, and fit the autoencoders once both are embedded."""
        encoded = super().encode(stream, model, request, run)
        if not self.config.unlearn_weight:
            return encoded
        assert isinstance(model, Predictor)
        model.model.eval()
        self._embeddings[stream] = features_of(model, encoded)[0].float()
        if len(self._embeddings) == 2:
            self._fit(run)
        return encoded

    def _fit(self, run: Run) -> None:
        forget, retain = self._embeddings["forget"], self._embeddings["retain"]
        everything = torch.cat([retain, forget])
        centre, scale = everything.mean(0), (everything - everything.mean(0)).square().mean().sqrt().clamp_min(1e-12)
        if self.config.parity:
            centre, scale = torch.zeros_like(centre), torch.ones_like(scale)
        notes = {}
        for name, data in (("retain", everything), ("forget", forget)):
            seed = draw(run.train.seed, "autoencoder", name) % 2**63
            density = fit(data, centre, scale, self.config, seed)
            self._densities[name] = density
            silent = torch.zeros(len(data), self.config.latent, device=data.device)
            notes[name] = float(density.distance(data, silent).mean())
        run.notes["distance_to_own_autoencoder"] = notes

    def _turns(self, densities: Mapping[str, Density]) -> Objective:
        config = self.config

        def distance(stream: Stream, stats: Statistics) -> Tensor:
            assert stats.hidden is not None
            # The loop seeds every step, so that this is a function of seed and step.
            embeddings = stats.hidden.float()
            noise = torch.randn(len(embeddings), config.latent).to(embeddings)
            return bounded(densities[stream].distance(embeddings, noise))

        def align(retain: Statistics, forget: Statistics) -> Tensor:
            pairs = [_now_and_before(stats) for stats in (retain, forget)]
            return alignment_loss(*pairs[0], *pairs[1], config.temperature)

        sides: tuple[tuple[Stream, float], ...] = (("retain", 1.0), ("forget", -1.0))
        terms: list[Term] = []
        turns: list[float] = []
        if config.unlearn_weight:
            terms += [
                Term(
                    f"leave_{s}", (s,), partial(distance, s), "example_mean", sign * config.unlearn_weight, hidden=True
                )
                for s, sign in sides
            ]
            turns.append(config.unlearn_rate)
        if config.align_weight:
            terms.append(
                Term(
                    "align", ("retain", "forget"), align, "example_mean", config.align_weight,
                    reference="rows", hidden=True, turn=len(turns),
                )
            )  # fmt: skip
            turns.append(1.0)
        return Objective(tuple(terms), turns=tuple(turns) or (1.0,), evaluation=True)


def _now_and_before(stats: Statistics) -> tuple[Tensor, Tensor]:
    """Embeddings of the model and of the model before unlearning, in float32."""
    assert stats.hidden is not None
    assert stats.reference_hidden is not None
    return stats.hidden.float(), stats.reference_hidden.float()
