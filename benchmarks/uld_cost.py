"""What ULD costs against NPO on the same model, examples and batch: to train, and afterwards to ask.

    python benchmarks/uld_cost.py [--layers 8 32] [--vocabulary 2000 32000] [--rounds 3] [--steps 5] [--json FILE]

NPO (with the retain NLL) trains every weight of the model. ULD trains an adapter on a quarter of its blocks, which pays
no gradient of the weights under it; but its uniformity term reads every token of the retain examples, prompts included.
Both through ``expunge.training.train``, float32, one thread, CPU seconds of the process per optimiser step (wall time
on an idle machine), medians over rounds that alternate. The paper's claim is a factor of 3 per epoch. Asking costs ULD
more for ever after, because the assistant runs too. FLOPs are the loop's own account.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.methods.base import settle
from expunge.methods.language.uld import ULD, Assistant
from expunge.methods.run import METHODS
from expunge.runs import facts
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.combination import Combination
from expunge.tasks.encoding import Encoded
from expunge.tasks.logit_ensemble import LogitEnsemble
from expunge.training.loop import train

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "npo": ("npo", {}),
    "uld, rank 32": ("uld", {"lora.rank": 32}),
    "uld, rank 8": ("uld", {"lora.rank": 8}),
    "uld, all weights": ("uld", {"lora": None}),
}


class _Tokens:
    bos_token_id, eos_token_id, pad_token_id, vocab_size, is_fast, chat_template = None, 0, 0, 1, True, None


def toy(layers: int, hidden: int, vocabulary: int) -> CausalLM:
    """A Llama-architecture model without a tokenizer: the benchmark makes token ids directly."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=int(hidden * 8 / 3 / 8) * 8,
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    return CausalLM(AutoModelForCausalLM.from_config(config), _Tokens())  # type: ignore[arg-type]


def examples(count: int, vocabulary: int, seed: int) -> Encoded:
    """Random token sequences with TOFU-like lengths: question 12-30, answer 15-75 tokens."""
    rng = np.random.default_rng(seed)
    prompts = [int(rng.integers(12, 31)) for _ in range(count)]
    tokens = [rng.integers(1, vocabulary, p + int(rng.integers(15, 76))) for p in prompts]
    return Encoded([f"{seed}-{i}" for i in range(count)], tokens, prompts)


def once(task: CausalLM, method: str, settings: dict[str, Any], steps: int, batch: int) -> dict[str, float]:
    """Train a few steps and return seconds and FLOPs per step, and of one scoring pass afterwards."""
    vocabulary = len(task.model.get_output_embeddings().weight)
    chosen, loop = settle(
        METHODS.get(method),
        {"batch_size": batch, "max_steps": steps, "epochs": 10**6, "warmup": 0.0, **settings},
    )
    trained: CausalLM = task
    if isinstance(chosen, ULD):
        blocks = len(task.operations.blocks) // 4
        trained = Assistant.of(task, blocks, shares=loop.lora is not None)
    streams = {"forget": examples(64, vocabulary, 1), "retain": examples(256, vocabulary, 2)}
    marks: list[float] = []
    result = train(
        trained, chosen.objective(), streams, loop,  # type: ignore[attr-defined, arg-type]
        progress=lambda done, total, values: marks.append(time.process_time()),
    )  # fmt: skip
    asked = task
    if trained is not task:
        asked = LogitEnsemble(task, [trained.model], Combination((-0.75,), filter=1e-2, min_keep=20))
    seconds = []
    with asked.asked():
        for _ in range(3):
            start = time.process_time()
            asked.statistics(streams["forget"].take(range(16)))
            seconds.append(time.process_time() - start)
    # The first step pays for allocations.
    step = statistics.median(b - a for a, b in itertools.pairwise(marks))
    return {"step": step, "flops": result.cost.flops / steps, "ask": statistics.median(seconds)}


def main() -> None:
    """Print one line per case, NPO's first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[2000, 32000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, batch {arguments.batch}")
    rows = []
    for vocabulary in arguments.vocabulary:
        for layers in arguments.layers:
            found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
            for _ in range(arguments.rounds):
                for case, (method, settings) in CASES.items():
                    task = toy(layers, arguments.hidden, vocabulary)
                    found[case].append(once(task, method, settings, arguments.steps, arguments.batch))
            base = found["npo"]
            for case, rounds in found.items():
                ratios = {k: [b[k] / r[k] for b, r in zip(base, rounds, strict=True)] for k in rounds[0]}
                row = {
                    "vocabulary": vocabulary, "layers": layers, "hidden": arguments.hidden, "case": case,
                    "cheaper": statistics.median(ratios["step"]),
                    "cheaper_low": min(ratios["step"]), "cheaper_high": max(ratios["step"]),
                    "fewer_flops": statistics.median(ratios["flops"]),
                    "asking_slower": 1 / statistics.median(ratios["ask"]),
                    "step_ms": 1000 * statistics.median(r["step"] for r in rounds),
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{row['cheaper']:5.2f}x cheaper [{row['cheaper_low']:.2f}, {row['cheaper_high']:.2f}] per step, "
                    f"{row['fewer_flops']:5.2f}x fewer FLOPs, asking {row['asking_slower']:.2f}x as long  "
                    f"V={vocabulary:<6} L={layers:<3} {case:16} {row['step_ms']:7.0f} ms"
                    + ("  (target 3.00)" if case != "npo" else ""),
                    flush=True,
                )
    if arguments.json:
        about = {
            "command": "python benchmarks/uld_cost.py " + " ".join(sys.argv[1:]).partition("--json")[0].rstrip(),
            "date": facts.now(), "commit": facts.commit(), "hardware": facts.hardware(), "versions": facts.versions(),
            "seed": 0,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
