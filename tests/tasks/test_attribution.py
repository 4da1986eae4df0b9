from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.tasks.attribution import input_gradients, integrated_gradients, path_points, token_attributions
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import collate


def test_where_the_path_is_looked_at() -> None:
    assert path_points(4, "midpoint") == [0.125, 0.375, 0.625, 0.875]
    assert path_points(3, "endpoints") == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="at least one"):
        path_points(0, "midpoint")


def test_contributions_equal_those_worked_out_by_hand() -> None:
    # f = x^2 y: along (a x, a y), df/dx = 2 a^2 x y and df/dy = a^2 x^2, so x gets 2/3 of f and y one third.
    x = torch.tensor([[2.0, 3.0], [-1.0, 0.5]], dtype=torch.float64)
    found = integrated_gradients(lambda v: v[:, 0] ** 2 * v[:, 1], x, torch.zeros(2), steps=2000)
    value = x[:, 0] ** 2 * x[:, 1]
    torch.testing.assert_close(found.values, torch.stack([2 * value / 3, value / 3], 1), rtol=1e-6, atol=1e-9)
    assert found.error.abs().max() < 1e-5


def test_midpoints_converge_faster_than_endpoints() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    errors = {
        rule: [
            float(
                integrated_gradients(lambda v: torch.exp(v @ w), x, torch.zeros(5), steps=n, rule=rule)
                .error.abs()
                .max()
            )  # type: ignore[arg-type]
            for n in (16, 64)
        ]
        for rule in ("midpoint", "endpoints")
    }
    assert errors["midpoint"][0] / errors["midpoint"][1] == pytest.approx(16, rel=0.3)
    assert errors["endpoints"][0] / errors["endpoints"][1] == pytest.approx(4, rel=0.3)
    assert errors["midpoint"][1] < errors["endpoints"][1] / 10


@pytest.mark.parametrize("of", ["logit", "loss"])
def test_input_gradients_are_those_of_one_example_at_a_time(tiny_predictor: Any, tiny_rows: Any, of: Any) -> None:
    task = tiny_predictor("module")
    task.model.train()
    encoded = task.encode(tiny_rows("module", range(5)))
    found = input_gradients(task, encoded, of)
    assert task.model.training
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())
    task.model.eval()
    for i in range(5):
        part = encoded.take([i])
        pixels = task.batch(part)["pixel_values"].requires_grad_(True)
        logits = task.predict({"pixel_values": pixels})
        value = logits[0, part.targets[0]] if of == "logit" else task.losses(logits, part.targets)[0]
        torch.testing.assert_close(torch.autograd.grad(value, pixels)[0][0], found[i])


@pytest.mark.parametrize("baseline", ["pad", "zero"])
def test_token_contributions_add_up_to_what_the_answer_gains(
    tiny_model: Any, tiny_tokenizer: Any, baseline: Any
) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    encoded = task.encoder.encode([("Who repairs clocks?", "Mirela does."), ("Where?", "In Velburg and Harrow Bay.")])
    values, errors = token_attributions(task, encoded, steps=64, baseline=baseline)
    for i in range(2):
        batch = collate(encoded.take([i]), task.encoder.pad_id, task.device)
        embed, start = task.model.get_input_embeddings(), encoded.starts[i]
        given = embed(batch.input_ids).detach()
        base = given.clone()
        neutral = embed(torch.tensor([task.encoder.pad_id])) if baseline == "pad" else torch.zeros(1, given.shape[-1])
        base[:, start:] = neutral.detach()
        with torch.no_grad():
            said = []
            for e in (given, base):
                log = torch.log_softmax(task.model(inputs_embeds=e).logits[0].float(), -1)
                answer = torch.from_numpy(np.asarray(encoded.tokens[i][start:]))
                said.append(float(log[start - 1 : -1].gather(1, answer[:, None]).sum()))
        assert len(values[i]) == len(encoded.tokens[i]) - start
        assert float(values[i].sum()) == pytest.approx(said[0] - said[1], abs=5e-3)
        assert abs(float(errors[i])) < 5e-3
        assert float(values[i][-1]) == 0, "nothing comes after the end of sequence"
