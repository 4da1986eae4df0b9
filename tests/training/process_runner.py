"""Runs training cases in every process of a launcher, and on one process for comparison.

python -m torch.distributed.run --nproc_per_node=2 process_runner.py OUT CASE.json ...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, kl_to_reference, nll
from expunge.training.probe import Probe
from expunge.training.settings import TrainSettings


class SteadyAdamW(torch.optim.AdamW):
    """Adam that does not blow rounding noise up into whole steps, as it does where a gradient is nearly 0.

    The KL to the reference starts with such a gradient, so plain Adam makes no two orders of summation comparable.
    """

    def __init__(self, parameters: Any, **options: Any):
        super().__init__(parameters, eps=1e-3, **options)


NPO = Term(
    "npo",
    ("forget",),
    lambda s: -20 * F.logsigmoid(0.1 * (s.sequence_nll - s.reference_nll)),
    "example_mean",
    reference="sequence_nll",
)
RETAIN = {
    "nll": Term("nll", ("retain",), nll, "token_mean"),
    "kl": Term("kl", ("retain",), kl_to_reference, "row_mean", reference="rows"),
    "attended": Term("kl", ("retain",), kl_to_reference, "row_mean", reference="rows", positions="attended"),
    "all": Term("kl", ("retain",), kl_to_reference, "row_mean", reference="rows", positions="all"),
}


def drift(stats: Any) -> torch.Tensor:
    away = (stats.blocks[1] - stats.reference_blocks[1]).square().mean(-1)
    return stats.per_example(away) / stats.counts


# One stream is left early, the other one is read behind every block.
BLOCKS = Objective(
    (
        Term(
            "steer",
            ("forget",),
            lambda s: s.per_example((s.blocks[0] - 1).square().mean(-1)),
            "example_mean",
            blocks=(0,),
        ),
        Term("hold", ("retain",), drift, "example_mean", 50.0, reference="rows", blocks=(1,)),
        RETAIN["nll"],
    )
)


def words() -> PreTrainedTokenizerFast:
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(61))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def model(family: str, tied: bool) -> CausalLM:
    common = {"vocab_size": 64, "tie_word_embeddings": tied, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    llama = {
        **common,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config: Any = {
        "llama": lambda: LlamaConfig(**llama),
        "mixtral": lambda: MixtralConfig(**llama, num_local_experts=4, num_experts_per_tok=2),
        "gpt2": lambda: GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **common
        ),
    }[family]()
    torch.manual_seed(0)
    return CausalLM(AutoModelForCausalLM.from_config(config).float(), words())


def pairs(first: int, count: int) -> list[tuple[str, str]]:
    return [
        (
            " ".join(f"w{(i * 7 + k) % 61}" for k in range(3 + i % 4)),
            " ".join(f"w{(i * 5 + k * k) % 61}" for k in range(2 + i % 6)),
        )
        for i in range(first, first + count)
    ]


def examples(first: int, count: int) -> Dataset:
    rows = [{"prompt": p, "answer": a} for p, a in pairs(first, count)]
    return Dataset.from_list([{**row, "id": example_id(row)} for row in rows])


def run_case(case: dict[str, Any], out: Path) -> None:
    """Train as the case says; the first process writes weights and facts to ``out``."""
    task = model(case.get("family", "llama"), case.get("tied", False))
    first = int(os.environ.get("RANK", "0")) == 0
    folder = out.parent / f"{out.name.removesuffix('-then')}-run" if case.get("folder") else None
    if "method" in case:
        request = DeletionRequest(examples(0, 7), examples(100, 11), examples(200, 5))
        done = unlearn(task, request, case["method"], settings=case["settings"], folder=folder)
        done.save(out.parent / f"{out.name}-model")
        task, result = done.model, done.training  # type: ignore[assignment]
    else:
        streams: dict[Any, Encoded] = {
            "forget": task.encoder.encode(pairs(0, 7), [f"f{i}" for i in range(7)]),
            "retain": task.encoder.encode(pairs(100, 11), [f"r{i}" for i in range(11)]),
        }
        settings = TrainSettings(**case["settings"])
        probe = Probe(streams, settings.stop, 0) if settings.stop.every else None
        objective = BLOCKS if case.get("blocks") else Objective((NPO, RETAIN[case.get("retain", "kl")]))
        result = train(task, objective, streams, settings, folder=folder, probe=probe)
    assert result is not None
    # Every process must end with an ordinary model of ordinary tensors, ready to be asked.
    score = [s.nll for s in task.score(pairs(0, 3))]
    if first:
        out.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().contiguous() for n, p in task.model.named_parameters()}, out / "weights.safetensors")
        facts = {
            "history": result.history,
            "probes": [p.to_dict() for p in result.probes],
            "kept_step": result.kept_step,
            "resumed_from": result.resumed_from,
            "stop_reason": result.stop_reason,
            "forwards": result.cost.forwards,
            "score": score,
        }
        (out / "facts.json").write_text(json.dumps(facts))


def main() -> None:
    """Run every case of a file, in order, in this process."""
    torch.set_num_threads(1)
    torch.optim.AdamW = SteadyAdamW  # type: ignore[misc]
    out, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    for name, case in cases.items():
        print(name, flush=True)  # where it stopped, if it does
        run_case(case, out / name)
        if case.get("again"):
            run_case(case, out / f"{name}-then")


if __name__ == "__main__":
    main()
