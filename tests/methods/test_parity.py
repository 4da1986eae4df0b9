"""Whole objectives in parity mode on padded tensors: slot by slot in plain code, and as the loop has them."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.base import settle
from expunge.methods.language.npo import NPO, NPOConfig
from expunge.methods.run import METHODS, unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.training.padded import Padded, objective_value

MakeTask = Callable[..., CausalLM]
LABELS = {
    "right": torch.tensor([[-100, -100, 3, 1, 4], [-100, 2, 0, -100, -100]]),
    "left": torch.tensor([[-100, -100, 3, 1, 4], [-100, -100, -100, 2, 0]]),
}


def drawn(seed: int, *, vocabulary: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(2, 5, vocabulary, generator=generator, dtype=torch.float64)


def slot_nll(logits: torch.Tensor, labels: torch.Tensor, b: int) -> list[torch.Tensor]:
    predicted = [t for t in range(4) if labels[b, t + 1] != -100]
    return [-(logits[b, t].exp() / logits[b, t].exp().sum())[labels[b, t + 1]].log() for t in predicted]


@pytest.mark.parametrize("side", ["left", "right"])
@given(seed=st.integers(0, 10**6), beta=st.floats(0.05, 3))
def test_npo_with_kl_as_the_reference_reduces_it(side: str, seed: int, beta: float) -> None:
    labels = LABELS[side]
    model, before, kept, kept_before = (drawn(seed + k) for k in range(4))
    leaves = [model.requires_grad_(), kept.requires_grad_()]
    objective = NPO(NPOConfig(beta=beta, retain="kl", retain_weight=0.7, parity=True)).objective()
    batches: Any = {
        "forget": Padded(model, labels, reference_logits=before),
        "retain": Padded(kept, labels, reference_logits=kept_before),
    }
    ours = objective_value(objective, batches)
    forget = []
    for b in range(2):
        gap = sum(slot_nll(model, labels, b)) - sum(slot_nll(before, labels, b))
        forget.append(-2 / beta * torch.log(1 / (1 + torch.exp(-beta * gap))))
    q, p = kept_before.softmax(-1), kept.softmax(-1)
    kl = sum((q[b, t] * (q[b, t] / p[b, t]).log()).sum() for b in range(2) for t in range(5)) / 10
    plain = (forget[0] + forget[1]) / 2 + 0.7 * kl
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


def padded(task: CausalLM, before: CausalLM, encoded: Encoded) -> Padded:
    """A batch as another trainer would make it."""
    width = max(len(t) for t in encoded.tokens)
    ids, labels = torch.zeros(len(encoded), width, dtype=torch.long), torch.full((len(encoded), width), -100)
    for b, (tokens, start) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
        ids[b, : len(tokens)] = torch.from_numpy(tokens)
        labels[b, start : len(tokens)] = torch.from_numpy(tokens[start:])
    mask = torch.tensor([[int(t < len(row)) for t in range(width)] for row in encoded.tokens])
    with torch.no_grad():
        now, then = (m.model(input_ids=ids, attention_mask=mask).logits for m in (task, before))
    return Padded(now, labels, attention_mask=mask, reference_logits=then)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("name", ["grad_diff", "npo", "simnpo", "wga", "satimp", "undial", "pdu"])
def test_it_is_what_the_loop_says_of_its_first_step(
    make_task: MakeTask, request_: DeletionRequest, name: str, parity: bool
) -> None:
    task = make_task()
    own: dict[str, Any] = {"retain": "kl", "retain_weight": 2.0, "parity": parity}
    chosen, _ = settle(METHODS.get(name), own)
    loop = {"max_steps": 1, "batch_size": 6, "warmup": 0.0}
    sets = request_.sets()
    retain = sets["retain"].select(range(6))
    request = DeletionRequest(request_.forget, retain)
    done = unlearn(task, request, name, settings={**own, **loop})
    assert done.training is not None
    batches: Any = {"forget": padded(task, task, task.encode(request.forget))}
    batches["retain"] = padded(task, task, task.encode(retain))
    value = objective_value(chosen.objective(), batches)  # type: ignore[attr-defined]
    assert math.isfinite(float(value))
    assert done.training.history[0]["loss"] == pytest.approx(float(value), rel=1e-5, abs=1e-5)


def named_functions() -> list[str]:
    """The functions of the tables, with the paths that the page says they have."""
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    found, base = [], ""
    for line in page.splitlines():
        if line.startswith("Paths are below"):
            base = line.split("`")[1]
        elif line.startswith("| ") and base:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            module = ""
            for name in re.findall(r"`([\w.]+)`", cells[1]):
                path = name if name.startswith(("expunge.", "torch.")) else f"{base}.{name}"
                # A bare name belongs to the module named before it in the same cell.
                path = f"{module}.{name}" if "." not in name else path
                module = path.rpartition(".")[0]
                found.append(path)
    return found


def test_every_function_that_the_page_names_is_there() -> None:
    names = named_functions()
    assert len(names) > 40
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                value: Any = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                value = getattr(value, part, None)
            assert callable(value), name
            break
        else:
            raise AssertionError(name)
