"""The lower problem of choosing a forget set: unlearn what the weights say, then ask how well each unit is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.errors import Diverged
from expunge.forget_sets.bilevel import StepLoss, loss_weights, unit_losses, unrolled_gradient, upper_objective
from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import EncodedExamples

Form = Literal["sign", "unrolled"]
SEED_STRIDE = 1_000_003


class Lower:
    """Unlearns from the same start again and again, for one choice of weights after the other.

    Args:
        start: the model to start from; it is left as it is.
        encoded: the training set.
        units: (N,) which unit each example belongs to.
        count: how many units there are.
        epochs, batch_size, rate: of the unlearning.
        ascent: see ``loss_weights``.
        seed: of the batches and of what training draws.
        parity: score in training mode on varied examples, as the reference does.
    """

    def __init__(
        self,
        start: Task,
        encoded: Any,
        units: Tensor,
        count: int,
        *,
        epochs: int,
        batch_size: int,
        rate: float,
        ascent: float,
        seed: int,
        parity: bool = False,
    ):
        self.task, self.encoded, self.units, self.count = start.copy(), encoded, units, count
        self.task.cost = start.cost
        self.epochs, self.batch_size, self.rate, self.ascent = epochs, batch_size, rate, ascent
        self.seed, self.parity = seed, parity
        self.state = {name: value.detach().clone() for name, value in self.task.model.state_dict().items()}
        self.named = {name: p for name, p in self.task.named_parameters() if p.requires_grad}

    def gradient(self, weights: Tensor, iteration: int, form: Form) -> tuple[Tensor, Tensor]:
        """Unlearn with these weights from the start, and return what the upper problem needs.

        Args:
            weights: (U,) float64.
            iteration: of the upper problem; with the seed it decides the order of the examples.
            form: steps along the sign of the gradient, through which nothing flows back, or plain steps, through
                which the gradient is taken as well.

        Returns:
            The gradient of the upper objective by the weights, and the mean losses of the units, both (U,) float64.

        Raises:
            Diverged: a loss is not a number.
        """
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed * SEED_STRIDE + iteration)
            self.task.model.load_state_dict(self.state)
            if form == "sign":
                self._sign_steps(weights, iteration)
                losses = self.losses()
                gradient = losses.clone()
            else:
                losses, gradient = self._unrolled(weights, iteration)
        if not bool(torch.isfinite(gradient).all()):
            raise Diverged("unlearning inside the search broke down -> lower unlearn_rate or unlearn_epochs")
        return gradient, losses

    def losses(self) -> Tensor:
        """Return the mean loss of each unit under the unlearned model, (U,) float64, in evaluation mode."""
        found = torch.empty(len(self.encoded), dtype=torch.float64)
        self.task.model.train(self.parity)
        with torch.no_grad():
            for batch in self._score_batches():
                part = self.encoded.take(batch)
                part = self.task.varied(part, self.seed) if self.parity else part
                found[batch] = self.task.statistics(part).mean_nll.double().cpu()
        self.task.model.eval()
        return unit_losses(found, self.units, self.count)

    # ---- the two forms ---------------------------------------------------------------------------------------------

    def _sign_steps(self, weights: Tensor, iteration: int) -> None:
        self.task.model.train()
        parameters = list(self.named.values())
        for part, units in self._batches(iteration):
            factor = loss_weights(weights, units, self.ascent)
            # A sum, as in the reference; the sign does not depend on it.
            loss = (factor.to(self._device()) * self.task.statistics(part).mean_nll).sum()
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, found, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient.sign(), alpha=self.rate)
        self.task.model.eval()

    def _unrolled(self, weights: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Take plain steps in evaluation mode, so that going back meets the same functions; then go back."""
        self.task.model.eval()
        names = list(self.named)
        path: list[Sequence[Tensor]] = []
        steps: list[StepLoss] = []
        theta: Sequence[Tensor] = [p.detach().clone() for p in self.named.values()]
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            for part, units in self._batches(iteration):
                loss = self._step_loss(part, units, names)
                path.append(theta)
                steps.append(loss)
                own = [p.detach().requires_grad_() for p in theta]
                found = torch.autograd.grad(loss(own, weights), own, materialize_grads=True, allow_unused=True)
                theta = [p - self.rate * g for p, g in zip(theta, found, strict=True)]
            with torch.no_grad():
                for parameter, value in zip(self.named.values(), theta, strict=True):
                    parameter.copy_(value)
            losses = self.losses()
            outer = self._outer_gradient(weights, theta, names)
            through = unrolled_gradient(path, steps, self.rate, weights, outer)
        return losses, losses + through

    def _step_loss(self, part: EncodedExamples, units: Tensor, names: Sequence[str]) -> StepLoss:
        def loss(theta: Sequence[Tensor], weights: Tensor) -> Tensor:
            factor = loss_weights(weights, units, self.ascent).to(self._device())
            return (factor * self._example_losses(part, dict(zip(names, theta, strict=True)))).sum() / len(units)

        return loss

    def _outer_gradient(self, weights: Tensor, theta: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
        """Return the gradient of the upper objective by the parameters, batch by batch."""
        sizes = torch.bincount(self.units, minlength=self.count)
        total = [torch.zeros_like(p) for p in theta]
        for batch in self._score_batches():
            own = [p.detach().requires_grad_() for p in theta]
            losses = self._example_losses(self.encoded.take(batch), dict(zip(names, own, strict=True)))
            share = (weights / sizes)[self.units[batch]].to(self._device())
            objective = upper_objective(share, losses)
            found = torch.autograd.grad(objective, own, materialize_grads=True, allow_unused=True)
            total = [t + g for t, g in zip(total, found, strict=True)]
        return total

    def _example_losses(self, part: EncodedExamples, parameters: Mapping[str, Tensor]) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(self.task.model, dict(parameters), args, kwargs)

        forward: Callable[..., Any] = call
        return self.task.statistics(part, forward=forward).mean_nll  # type: ignore[arg-type]

    # ---- batches ---------------------------------------------------------------------------------------------------

    def _batches(self, iteration: int) -> Iterator[tuple[Any, Tensor]]:
        """Batches of the whole training set with their units, shuffled by (seed, iteration, epoch)."""
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + iteration)
        for epoch in range(self.epochs):
            order = torch.randperm(len(self.encoded), generator=generator)
            for batch in order.split(self.batch_size):
                part = self.encoded.take(batch.tolist())
                if self.task.varies:
                    part = self.task.varied(part, self.seed * SEED_STRIDE + iteration * self.epochs + epoch)
                yield part, self.units[batch]

    def _score_batches(self) -> list[list[int]]:
        return length_batches([self.encoded.length(i) for i in range(len(self.encoded))], self.task.tokens_per_forward)

    def _device(self) -> torch.device:
        return self.task.device
