"""Two processes give what one process gives: data parallel, and with split weights."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

RUNNER = Path(__file__).with_name("process_runner.py")
BASE = {"batch_size": 4, "epochs": 3, "learning_rate": 3e-3}
# Seven forget examples in batches of four: the last batch of an epoch has three, so shares differ.
CASES: dict[str, dict[str, Any]] = {
    "plain": {"settings": BASE},
    "nll": {"retain": "nll", "settings": BASE},
    "attended": {"retain": "attended", "settings": BASE},
    "tied": {"tied": True, "settings": BASE},
    "one_each": {"settings": {**BASE, "micro_batch_size": 1}},
    "shared": {"settings": {**BASE, "share_forward": "always"}},
    "shared_apart": {"retain": "attended", "settings": {**BASE, "share_forward": "always"}},
    "no_share": {"settings": {**BASE, "batch_size": 1, "epochs": 1}},
    "experts": {"family": "mixtral", "settings": BASE},
    "gpt2": {"family": "gpt2", "settings": BASE},
    "blocks": {"blocks": True, "settings": {**BASE, "micro_batch_size": 1}},
    "lora": {"settings": {**BASE, "lora": {"rank": 4}}},
    "loose": {"settings": {**BASE, "clip_norm": None, "weight_decay": 0.0}},
    "probed": {"settings": {**BASE, "stop": {"every": 2, "forget_target": 4.4, "keep": "closest"}}},
    "resumed": {
        "folder": True,
        "settings": {**BASE, "checkpoint_every": 4},
        "again": True,
    },
    "rmu": {"method": "rmu", "settings": BASE},
    "pdu": {"method": "pdu", "settings": {**BASE, "dual_warmup_epochs": 0, "retain_weight": 1.0, "bound": 3.0}},
    "whp": {"method": "whp", "folder": True, "settings": {**BASE, "reinforce_learning_rate": 1e-2, "anchors": "none"}},
    "method": {"method": "npo", "folder": True, "settings": {**BASE, "retain": "kl", "stop.every": 2}},
}
SHARDED = (
    "plain",
    "nll",
    "tied",
    "one_each",
    "no_share",
    "experts",
    "gpt2",
    "blocks",
    "lora",
    "probed",
    "resumed",
    "method",
    "rmu",
    "pdu",
    "whp",
)


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("process_runner", RUNNER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(command: list[str], out: Path, cases: dict[str, dict[str, Any]]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "cases.json").write_text(json.dumps(cases))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    full = [*command, str(RUNNER), str(out), str(out / "cases.json")]
    done = subprocess.run(full, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]
    return out


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
TORCHRUN += ["--rdzv-endpoint=localhost:0"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
ACCELERATE += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    module = runner()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(torch.optim, "AdamW", module.SteadyAdamW)
        for name, case in CASES.items():
            module.run_case(case, out / name)
    return out


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(TORCHRUN, tmp_path_factory.mktemp("torchrun"), CASES)


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = {name: CASES[name] for name in ("plain", "no_share", "method")}
    return launch(ACCELERATE, tmp_path_factory.mktemp("accelerate"), chosen)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = {}
    for name in SHARDED:
        case = CASES[name]
        chosen[name] = {**case, "settings": {**case["settings"], "sharding": "fully_shard"}}
    return launch(TORCHRUN, tmp_path_factory.mktemp("sharded"), chosen)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(folder / "weights.safetensors"), json.loads((folder / "facts.json").read_text())


def compare(one: Path, other: Path) -> None:
    (weights, facts), (expected, known) = read(one), read(other)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert [r["step"] for r in facts["history"]] == [r["step"] for r in known["history"]]
    for record, same in zip(facts["history"], known["history"], strict=True):
        assert record == pytest.approx(same, rel=1e-3, abs=1e-5)
    assert len(facts["probes"]) == len(known["probes"])
    for point, same in zip(facts["probes"], known["probes"], strict=True):
        for key, value in same.items():
            assert point[key] == (value if value is None else pytest.approx(value, rel=1e-4))
    assert facts["kept_step"] == known["kept_step"]
    assert facts["score"] == pytest.approx(known["score"], rel=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_data_parallel(alone: Path, torchrun: Path, case: str) -> None:
    compare(torchrun / case, alone / case)


@pytest.mark.parametrize("case", ["plain", "no_share", "method"])
def test_under_accelerate_launch(alone: Path, accelerated: Path, case: str) -> None:
    compare(accelerated / case, alone / case)


@pytest.mark.parametrize("case", SHARDED)
def test_split_weights(alone: Path, sharded: Path, case: str) -> None:
    compare(sharded / case, alone / case)


def test_the_cases_exercise_what_they_name(alone: Path) -> None:
    _, probed = read(alone / "probed")
    assert probed["kept_step"] > 0
    assert "forget target reached" in probed["stop_reason"]
    start, (end, _) = dict(runner().model("llama", False).model.named_parameters()), read(alone / "plain")
    assert max(float((start[n] - v).abs().max()) for n, v in end.items()) > 1e-2


@pytest.mark.parametrize("launcher", ["torchrun", "sharded"])
def test_resuming_under_several_processes_is_bitwise(launcher: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(launcher)
    (whole, _), (again, facts) = read(folder / "resumed"), read(folder / "resumed-then")
    assert facts["resumed_from"] == 4
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.parametrize("launcher", ["torchrun", "sharded", "accelerated"])
def test_what_is_saved_loads_plainly(launcher: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(launcher)
    plain = AutoModelForCausalLM.from_pretrained(folder / "method-model")
    expected, _ = read(folder / "method")
    assert all(torch.equal(p, expected[name]) for name, p in plain.named_parameters())
    assert not list(folder.glob(".method-model*"))
