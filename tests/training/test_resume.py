"""A run that is killed and started again ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.errors import BadInput
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.training import checkpoint
from expunge.training.loop import TrainResult, train
from expunge.training.objective import Objective, Term, kl_to_reference, negative_nll
from expunge.training.probe import Probe
from expunge.training.settings import TrainSettings

Encode = Callable[..., Encoded]
Streams = dict[Any, Encoded]
STEPS = 12
NPO = Objective(
    (
        Term(
            "npo",
            ("forget",),
            lambda s: -20 * F.logsigmoid(0.1 * (s.sequence_nll - s.reference_nll)),
            "example_mean",
            reference="sequence_nll",
        ),
        Term("kl", ("retain",), kl_to_reference, "row_mean", reference="rows"),
    )
)
# One with dropout in the model, one with dropout on adapters, one whose kept weights may be older than the kill.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"family": "gpt2"},
    "lora": {"family": "llama", "lora": {"rank": 4, "dropout": 0.3}},
    "closest": {"family": "gpt2", "stop": {"every": 4, "forget_target": 6.94, "keep": "closest"}},
    "split": {"family": "gpt2", "micro_batch_size": 2, "precision": "bf16"},
}


def start(tiny_model: Any, tokenizer: Any, variant: str) -> tuple[CausalLM, Streams, TrainSettings]:
    return prepare(CausalLM(tiny_model(VARIANTS[variant]["family"], vocab=384)[0], tokenizer), variant)


def prepare(task: CausalLM, variant: str) -> tuple[CausalLM, Streams, TrainSettings]:
    chosen = {key: value for key, value in VARIANTS[variant].items() if key != "family"}
    questions = [(f"Where was number {i} born?", f"In Velburg{' or Salt' * (i % 3)} {i}.") for i in range(40)]
    encoded = task.encoder.encode(questions, [f"id{i}" for i in range(40)])
    streams: Streams = {"forget": encoded.take(range(12)), "retain": encoded.take(range(12, 40))}
    settings = TrainSettings(batch_size=4, epochs=4, learning_rate=3e-3, checkpoint_every=3, seed=1, **chosen)
    return task, streams, settings


def run(
    task: CausalLM,
    streams: Streams,
    settings: TrainSettings,
    folder: Path,
    kill: Callable[[int], None] = lambda _: None,
) -> TrainResult:
    probe = Probe(streams, settings.stop, settings.seed) if settings.stop.every else None
    return train(task, NPO, streams, settings, folder=folder, probe=probe, progress=lambda n, *_: kill(n))


def in_a_process_that_dies(tiny_model: Any, tokenizer: Any, variant: str, folder: Path, moment: int | str) -> None:
    """Run in a process of its own, which must end by SIGKILL at that step or that write.

    Not forked from this one: by now it may hold threads of earlier tests, whose locks a fork would leave shut.
    """
    start_files = folder.parent / "start"
    tiny_model(VARIANTS[variant]["family"], vocab=384)[0].save_pretrained(start_files)
    tokenizer.save_pretrained(start_files)
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload(["pytest", "peft", "expunge.training.loop", "expunge.tasks.causal_lm"])
    dying = {"start_files": start_files, "variant": variant, "folder": folder, "moment": moment}
    # Sums over several threads are rounded otherwise than over one.
    arguments = {"DYING": {**dying, "threads": torch.get_num_threads()}}
    process = clean.Process(target=runpy.run_path, args=(__file__, arguments, "__main__"), daemon=True)
    process.start()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL


def run_and_die(start_files: Path, variant: str, folder: Path, moment: int | str, threads: int) -> None:
    """What that process does; ``moment`` is a step, or the write to die in."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(start_files)
    killed, streams, settings = prepare(CausalLM(model, AutoTokenizer.from_pretrained(start_files)), variant)
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == {"reference": "reference.safetensors", "checkpoint": "step-00000006"}[str(moment)]:
            die()
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        if moment == "log":  # after the rename, before the older one is removed
            patch.setattr("expunge.training.loop.remove_older", lambda _: die())
        elif isinstance(moment, str):
            patch.setattr(os, "replace", replace)
        run(killed, streams, settings, folder, lambda n: die() if n == moment else None)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def weights(task: CausalLM) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in task.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_gives_the_same_bytes(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, variant: str
) -> None:
    task, streams, settings = start(tiny_model, tiny_tokenizer, variant)
    whole = run(task, streams, settings, tmp_path / "whole")
    assert whole.steps == STEPS
    assert whole.kept_step == (8 if variant == "closest" else STEPS)
    # Twice: somewhere after a checkpoint, and then again before the next one.
    moments = random.SystemRandom().sample(range(4, whole.steps), 2)
    for moment in sorted(moments):
        in_a_process_that_dies(tiny_model, tiny_tokenizer, variant, tmp_path / "cut", moment)
    again, _, _ = start(tiny_model, tiny_tokenizer, variant)
    resumed = run(again, streams, settings, tmp_path / "cut")
    assert resumed.resumed_from is not None, f"killed at {moments}"
    assert resumed.resumed_from >= 3
    assert all(torch.equal(v, weights(again)[n]) for n, v in weights(task).items()), f"killed at {moments}"
    assert resumed.history == whole.history
    assert resumed.probes == whole.probes
    assert (resumed.kept_step, resumed.stop_reason) == (whole.kept_step, whole.stop_reason)
    for one, other in ((resumed.cost, whole.cost), (resumed.probe_cost, whole.probe_cost)):
        for key in ("forwards", "backwards", "sequences", "tokens", "padded_tokens", "flops"):
            assert getattr(one, key) == pytest.approx(getattr(other, key)), key
    log = (tmp_path / "cut" / "log.jsonl").read_text()
    assert log == (tmp_path / "whole" / "log.jsonl").read_text()
    assert [json.loads(line)["step"] for line in log.splitlines() if '"probe"' not in line] == list(
        range(1, whole.steps + 1)
    )


@pytest.mark.parametrize("moment", ["reference", "checkpoint", "log"])
def test_a_kill_while_writing_loses_nothing(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, moment: str) -> None:
    task, streams, settings = start(tiny_model, tiny_tokenizer, "full")
    run(task, streams, settings, tmp_path / "whole")
    in_a_process_that_dies(tiny_model, tiny_tokenizer, "full", tmp_path / "cut", moment)
    again, _, _ = start(tiny_model, tiny_tokenizer, "full")
    resumed = run(again, streams, settings, tmp_path / "cut")
    assert resumed.resumed_from == {"reference": None, "checkpoint": 3, "log": 3}[moment]
    assert all(torch.equal(v, weights(again)[n]) for n, v in weights(task).items())
    left = sorted(p.name for p in (tmp_path / "cut" / "checkpoints").iterdir())
    assert left == ["step-00000012"]


def test_a_finished_run_started_again_does_nothing_and_gives_the_same(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    task, streams, settings = start(tiny_model, tiny_tokenizer, "closest")
    first = run(task, streams, settings, tmp_path)
    again, _, _ = start(tiny_model, tiny_tokenizer, "closest")
    second = run(again, streams, settings, tmp_path)
    assert all(torch.equal(v, weights(again)[n]) for n, v in weights(task).items())
    assert (second.kept_step, second.stop_reason) == (first.kept_step, first.stop_reason)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("settings", "other settings"),
        ("model", "another model"),
        ("examples", "other examples"),
        ("objective", "another method"),
        ("identity", "another method"),
    ],
)
def test_another_run_is_never_continued(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, change: str, message: str
) -> None:
    task, streams, settings = start(tiny_model, tiny_tokenizer, "full")
    run(task, streams, settings, tmp_path)
    other, _, _ = start(tiny_model, tiny_tokenizer, "full")
    objective, identity = NPO, ""
    if change == "settings":
        settings = settings.model_copy(update={"learning_rate": 1e-4})
    elif change == "model":
        with torch.no_grad():
            next(other.model.parameters())[0, 0] += 1
    elif change == "examples":
        streams["forget"] = streams["forget"].take(range(11))
    elif change == "objective":
        objective = Objective((Term("f", ("forget",), negative_nll, "token_mean"), NPO.terms[1]))
    else:
        identity = "beta 0.2"
    before = weights(other)
    with pytest.raises(BadInput, match=message):
        train(other, objective, streams, settings, folder=tmp_path, identity=identity)
    assert all(torch.equal(v, before[n]) for n, v in weights(other).items())


def test_a_damaged_checkpoint_is_named_on_resuming(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    task, streams, settings = start(tiny_model, tiny_tokenizer, "full")
    run(task, streams, settings, tmp_path)
    file = tmp_path / "checkpoints" / "step-00000012" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    again, _, _ = start(tiny_model, tiny_tokenizer, "full")
    with pytest.raises(BadInput, match="step-00000012: is damaged"):
        run(again, streams, settings, tmp_path)


def test_resuming_really_uses_the_checkpoint(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """The comparison above could not fail if resuming started from the beginning."""
    task, streams, settings = start(tiny_model, tiny_tokenizer, "full")
    run(task, streams, settings, tmp_path)
    folder = tmp_path / "checkpoints" / "step-00000012"
    facts = json.loads((folder / "facts.json").read_text())
    state = load_file(folder / "state.safetensors")
    state["weight.transformer.wte.weight"] += 1
    checkpoint.write_checkpoint(tmp_path / "checkpoints", state, {**facts, "step": 12})
    again, _, _ = start(tiny_model, tiny_tokenizer, "full")
    run(again, streams, settings, tmp_path)
    moved = weights(again)["transformer.wte.weight"] - weights(task)["transformer.wte.weight"]
    assert torch.allclose(moved, torch.ones_like(moved), atol=1e-5)


if __name__ == "__main__":
    run_and_die(**globals()["DYING"])
