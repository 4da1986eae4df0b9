"""Which inputs a prediction rests on: gradients, and gradients integrated along a path from a baseline.

Whether such attributions may be trusted depends on how a model was trained; the audit ``input_gradients`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from expunge.tasks.encoding import Encoded, collate, length_batches
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.statistics import head_rows

if TYPE_CHECKING:
    from expunge.tasks.base import Task
    from expunge.tasks.causal_lm import CausalLM
    from expunge.tasks.predictor import Predictor

Rule = Literal["midpoint", "endpoints"]
Of = Literal["logit", "loss"]


@dataclass(frozen=True)
class Attribution:
    """What each input contributes to a value.

    Attributes:
        values: contributions, of the inputs' shape.
        error: (B,) completeness error: sum of contributions less the value's rise from baseline to input; 0 for the
            exact integral.
    """

    values: Tensor
    error: Tensor


def path_points(steps: int, rule: Rule) -> list[float]:
    """Return where on the path from baseline (0) to input (1) gradients are taken; they are averaged plainly.

    Args:
        steps: how many points.
        rule: "midpoint", whose error falls with 1/steps^2; or "endpoints", evenly spaced with both ends in, as released
            code has it, whose error falls with 1/steps only.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, and at least one point is needed")
    if rule == "midpoint":
        return [(k + 0.5) / steps for k in range(steps)]
    return [k / (steps - 1) for k in range(steps)] if steps > 1 else [1.0]


def integrated_gradients(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    baseline: Tensor,
    *,
    steps: int = 32,
    rule: Rule = "midpoint",
) -> Attribution:
    """Return ``(x - b) * integral_0^1 grad f(b + a (x - b)) da`` per input number.

    Args:
        function: maps (B, ...) to (B,), each value a function of its own row alone.
        inputs: (B, ...).
        baseline: broadcasts to the inputs.
        steps: points on the path.
        rule: see ``path_points``.

    Source: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks (arXiv:1703.01365), equation 1.
    """
    inputs = inputs.detach()
    base = baseline.detach().to(inputs).expand_as(inputs)
    points = path_points(steps, rule)
    total = torch.zeros_like(inputs)
    with torch.enable_grad():
        for a in points:
            at = (base + a * (inputs - base)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(function(at).sum(), at)
            total += gradient
    values = (inputs - base) * total / len(points)
    with torch.no_grad():
        rise = function(inputs) - function(base)
    return Attribution(values, values.flatten(1).sum(1) - rise)


@contextmanager
def asked_for_gradients(task: Task) -> Iterator[None]:
    """Put a model into evaluation mode with its weights fixed, so that gradients reach inputs alone, and back."""
    training, flags = task.model.training, [p.requires_grad for p in task.model.parameters()]
    task.model.eval()
    task.model.requires_grad_(False)
    try:
        with task.cost.measured():
            yield
    finally:
        task.model.train(training)
        for p, flag in zip(task.model.parameters(), flags, strict=True):
            p.requires_grad_(flag)


def input_gradients(task: Predictor, encoded: LabelledExamples, of: Of = "logit") -> Tensor:
    """Return the gradient of each example's logit of its label, or of its loss, by what the model is given.

    Args:
        task: a model of images or tables; left as it is, and asked in evaluation mode.
        encoded: N examples of one size.
        of: "logit" of the label, or "loss".

    Returns:
        (N, ...) float32 on the CPU, by the normalised inputs that the model sees.
    """
    out: list[Tensor] = []
    with asked_for_gradients(task):
        step = max(1, task.tokens_per_forward)
        for start in range(0, len(encoded), step):
            part = encoded.take(range(start, min(start + step, len(encoded))))
            name, given = next(iter(task.batch(part).items()))
            given = given.detach().requires_grad_(True)
            targets = part.targets.to(given.device)
            with torch.enable_grad():
                logits = task.predict({name: given})
                value = task.losses(logits, targets) if of == "loss" else logits.gather(1, targets[:, None])
                (gradient,) = torch.autograd.grad(value.sum(), given)
            task.cost.forwards += 1
            task.cost.backwards += 1
            task.cost.sequences += len(part)
            out.append(gradient.float().cpu())
    return torch.cat(out)


def token_attributions(
    task: CausalLM,
    encoded: Encoded,
    *,
    steps: int = 32,
    rule: Rule = "midpoint",
    baseline: Literal["pad", "zero"] = "pad",
) -> tuple[list[Tensor], Tensor]:
    """Return what each answer token contributes to the log-probability of its answer.

    Of ``F(e) = sum_t log p(x_t | e_<t)`` over the answer tokens x_t, gradients by the embeddings e of the answer tokens
    are integrated along the path from a baseline, the prompt staying as it is; a token's contribution is summed over
    its embedding. A token contributes to what comes after it, so the last one contributes nothing.

    Args:
        task: the model; left as it is, and asked in evaluation mode.
        encoded: N examples.
        steps, rule: see ``integrated_gradients``.
        baseline: in the place of each answer token, the embedding of the padding token, or zeros.

    Returns:
        Per example a (T - start,) tensor on the CPU, end of sequence included, and the (N,) completeness errors.
    """
    found: list[Tensor] = [torch.empty(0)] * len(encoded)
    errors = torch.zeros(len(encoded))
    embed = task.model.get_input_embeddings()
    with asked_for_gradients(task):
        lengths = [encoded.length(i) for i in range(len(encoded))]
        for indices in length_batches(lengths, max(1, task.tokens_per_forward // 4)):
            batch = collate(encoded.take(indices), task.encoder.pad_id, task.device)
            given = embed(batch.input_ids).detach()
            answer = _answers(encoded, indices, given.shape[1]).to(given.device)
            neutral = torch.zeros_like(given[0, 0])
            if baseline == "pad":
                neutral = embed(torch.tensor([task.encoder.pad_id], device=given.device))[0].detach()
            base = torch.where(answer[..., None], neutral, given)

            def value(embeddings: Tensor, batch: Any = batch) -> Tensor:
                with head_rows(task.model.get_output_embeddings(), batch.rows):
                    output = task.model(inputs_embeds=embeddings, attention_mask=batch.attention_mask, use_cache=False)
                task.cost.forwards += 1
                task.cost.backwards += int(torch.is_grad_enabled())
                logits = output.logits.reshape(-1, output.logits.shape[-1]).float()
                chosen = torch.log_softmax(logits, -1).gather(1, batch.targets[:, None])[:, 0]
                return torch.zeros(len(batch.ids), device=chosen.device).index_add(0, batch.example, chosen)

            attribution = integrated_gradients(value, given, base, steps=steps, rule=rule)
            per_token = attribution.values.float().sum(-1).cpu()
            for row, i in enumerate(indices):
                found[i] = per_token[row, encoded.starts[i] : lengths[i]]
                errors[i] = attribution.error[row].float().cpu()
            task.cost.sequences += len(indices)
    return found, errors


def _answers(encoded: Encoded, indices: list[int], width: int) -> Tensor:
    """(B, T) which positions hold answer tokens."""
    places = torch.arange(width)
    starts = torch.tensor([encoded.starts[i] for i in indices])
    ends = torch.tensor([encoded.length(i) for i in indices])
    return (places >= starts[:, None]) & (places < ends[:, None])
