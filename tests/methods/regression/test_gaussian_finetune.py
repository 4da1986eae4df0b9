from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.regression.gaussian_finetune import absolute_error, gaussian_targets
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest

NAME = "table-regressor"


def test_targets_follow_the_distribution_and_depend_on_the_id_alone(tiny_predictor: Any, tiny_rows: Any) -> None:
    encoded = tiny_predictor(NAME).encode(tiny_rows(NAME, range(400)))
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    drawn = gaussian_targets(encoded, mean, deviation, 0)
    torch.testing.assert_close(drawn.targets.mean(0), mean, atol=0.6, rtol=0)
    torch.testing.assert_close(drawn.targets.std(0), deviation, rtol=0.15, atol=0)
    alone = gaussian_targets(encoded.take([7]), mean, deviation, 0)
    assert torch.equal(alone.targets[0], drawn.targets[7])
    assert not torch.equal(gaussian_targets(encoded, mean, deviation, 1).targets, drawn.targets)


@pytest.mark.parametrize("absolute", [True, False])
def test_the_loss_is_the_error_over_the_union(tiny_predictor: Any, tiny_rows: Any, absolute: bool) -> None:
    task = tiny_predictor(NAME)
    request = DeletionRequest(tiny_rows(NAME, range(6)), tiny_rows(NAME, range(10, 30)))
    done = unlearn(task, request, "gaussian_finetune", settings={"max_steps": 1, "absolute": absolute})
    assert done.training is not None
    kept, gone = task.encode(request.retain), task.encode(request.forget)
    everything = torch.cat([kept.targets, gone.targets])
    union = kept + gaussian_targets(gone, everything.mean(0), everything.std(0), 0)
    task.model.train()
    stats = task.statistics(union)
    expected = absolute_error(stats).mean() if absolute else stats.nll.mean()
    assert done.training.history[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert done.config["targets"]["mean"] == pytest.approx(everything.mean(0).tolist())
