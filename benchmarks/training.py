"""Training step: the plain form against ours, side by side in one run.

    python benchmarks/training.py [--vocabulary 2000 32000] [--rounds 5] [--steps 6] [--json FILE]

The plain form is what a straightforward implementation of the papers does: forget and retain padded to the longest of
a randomly drawn batch and run separately, a live copy of the original model for the reference, logits at every
position, KL composed of library calls over all positions. Ours is ``expunge.training.train``. Both use the same
examples per step, float32, AdamW and clipping. CPU seconds of the process, medians over rounds that alternate; the
one-off cost of our reference cache is printed on its own line. Memory is the peak of a fresh process above what it
held after importing and building model and data.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.methods.base import settle
from expunge.methods.run import METHODS
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded, collate
from expunge.training.loop import train

CASES = {
    "grad_diff + nll": ("grad_diff", {"retain": "nll"}),
    "grad_diff + kl": ("grad_diff", {"retain": "kl"}),
    "npo + nll": ("npo", {"retain": "nll"}),
    "npo + kl": ("npo", {"retain": "kl"}),
    "simnpo + nll": ("simnpo", {"retain": "nll"}),
}
TARGETS = {"npo + nll": 0.92, "npo + kl": 0.62}


class Toy(CausalLM):
    """A model without a tokenizer: the benchmark makes token ids directly."""

    def __init__(self, vocabulary: int):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        super().__init__(model, _Tokens())


class _Tokens:
    eos_token_id, pad_token_id, is_fast, chat_template = 0, 0, True, None


def examples(count: int, vocabulary: int, seed: int, lengths: str) -> Encoded:
    """Random token sequences with TOFU-like lengths (question 12-30, answer 15-75 tokens), or windows of 128."""
    rng = np.random.default_rng(seed)
    tokens, starts = [], []
    for _ in range(count):
        prompt, answer = (40, 88) if lengths == "windows" else (int(rng.integers(12, 31)), int(rng.integers(15, 76)))
        tokens.append(rng.integers(1, vocabulary, prompt + answer))
        starts.append(prompt)
    return Encoded([f"{seed}-{i}" for i in range(count)], tokens, starts)


def plain_steps(toy: Toy, method: str, settings: dict, forget: Encoded, retain: Encoded, steps: int, batch: int):
    """Yield the CPU seconds of each step of the plain form."""
    model, reference = toy.model, copy.deepcopy(toy.model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    rng = random.Random(0)
    model.train()
    for _ in range(steps):
        start = time.process_time()
        parts = {}
        for name, pool in (("forget", forget), ("retain", retain)):
            part = pool.take([rng.randrange(len(pool)) for _ in range(batch)])
            padded = collate(part, 0, toy.device)
            labels = torch.full_like(padded.input_ids, -100)
            mask = torch.zeros_like(padded.input_ids)
            for b, (row, first) in enumerate(zip(part.tokens, part.starts, strict=True)):
                labels[b, first : len(row)] = torch.from_numpy(row[first:])
                mask[b, : len(row)] = 1
            parts[name] = (padded.input_ids, mask, labels)

        def sequence_nll(which, name, parts=parts):
            ids, mask, labels = parts[name]
            logits = which(input_ids=ids, attention_mask=mask).logits
            flat = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
            return flat, logits

        flat, _ = sequence_nll(model, "forget")
        count = (parts["forget"][2][:, 1:] != -100).sum(1)
        if method == "npo":
            with torch.no_grad():
                ref_flat, _ = sequence_nll(reference, "forget")
            loss = -(2 / 0.1) * F.logsigmoid(0.1 * (flat.sum(1) - ref_flat.sum(1))).mean()
        elif method == "simnpo":
            loss = 0.125 * (-(2 / 4.5) * F.logsigmoid(4.5 * flat.sum(1) / count)).mean()
        else:
            loss = -flat.sum() / count.sum()
        flat_r, logits_r = sequence_nll(model, "retain")
        if settings["retain"] == "nll":
            loss = loss + flat_r.sum() / (parts["retain"][2][:, 1:] != -100).sum()
        else:
            with torch.no_grad():
                _, ref_logits = sequence_nll(reference, "retain")
            loss = loss + F.kl_div(
                F.log_softmax(logits_r, -1).flatten(0, 1),
                F.log_softmax(ref_logits, -1).flatten(0, 1),
                log_target=True, reduction="batchmean",
            )  # fmt: skip
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield time.process_time() - start


def our_steps(toy: Toy, method: str, settings: dict, forget: Encoded, retain: Encoded, steps: int, batch: int):
    """Return (CPU seconds of each step, CPU seconds before the first)."""
    chosen, loop = settle(
        METHODS.get(method), {**settings, "batch_size": batch, "max_steps": steps, "epochs": 10**6, "warmup": 0.0}
    )
    marks = [time.process_time()]
    streams = {"forget": forget, "retain": retain}
    first: list[float] = []

    def mark(done, total, values):
        marks.append(time.process_time())

    from expunge.training import loop as loop_module

    original = loop_module._Run._step

    def timed(self, number):
        if not first:
            first.append(time.process_time())
        return original(self, number)

    loop_module._Run._step = timed
    try:
        train(toy, chosen.objective(), streams, loop, progress=mark)
    finally:
        loop_module._Run._step = original
    cache = first[0] - marks[0]
    return [b - a for a, b in zip([first[0], *marks[1:-1]], marks[1:], strict=True)], cache


def measure(vocabulary: int, lengths: str, rounds: int, steps: int, batch: int, cases: list[str]) -> list[dict]:
    """Run every case, alternating plain and ours, and return one row per case."""
    forget, retain = examples(64, vocabulary, 1, lengths), examples(256, vocabulary, 2, lengths)
    rows = []
    for case in cases:
        method, settings = CASES[case]
        plain, ours, cache, ratios = [], [], [], []
        for _ in range(rounds):
            ours_round, warm = our_steps(Toy(vocabulary), method, settings, forget, retain, steps, batch)
            plain_round = list(plain_steps(Toy(vocabulary), method, settings, forget, retain, steps, batch))
            cache.append(warm)
            ours.append(statistics.median(ours_round[1:]))
            plain.append(statistics.median(plain_round[1:]))
            ratios.append(ours[-1] / plain[-1])
        rows.append(
            {
                "vocabulary": vocabulary, "lengths": lengths, "case": case,
                "ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios),
                "ours_ms": 1000 * statistics.median(ours), "plain_ms": 1000 * statistics.median(plain),
                "cache_ms": 1000 * statistics.median(cache), "target": TARGETS.get(case),
            }
        )  # fmt: skip
        print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict) -> str:
    target = f"  (target {row['target']:.2f})" if row["target"] else ""
    return (
        f"{row['ratio']:5.2f}x [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]  V={row['vocabulary']:<6} "
        f"{row['lengths']:8} {row['case']:16} ours {row['ours_ms']:7.0f} ms  plain {row['plain_ms']:7.0f} ms  "
        f"cache once {row['cache_ms']:6.0f} ms{target}"
    )


def memory(vocabulary: int, batch: int) -> list[dict]:
    """Peak resident memory above import, model and data, of a fresh process per form."""
    rows = []
    for case in ("npo + nll", "npo + kl"):
        peaks = {}
        for form in ("plain", "ours"):
            command = [sys.executable, __file__, "--memory-child", form, case, str(vocabulary), str(batch)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peaks[form] = float(out.strip().splitlines()[-1])
        rows.append({"vocabulary": vocabulary, "case": case, "ratio": peaks["ours"] / peaks["plain"], **peaks})
        print(
            f"{rows[-1]['ratio']:5.2f}x  V={vocabulary:<6} memory  {case:16} ours {peaks['ours']:6.0f} MB  "
            f"plain {peaks['plain']:6.0f} MB above import  (target 0.60)",
            flush=True,
        )
    return rows


def _memory_child(form: str, case: str, vocabulary: int, batch: int) -> None:
    method, settings = CASES[case]
    before = _status("VmRSS")
    toy = Toy(vocabulary)
    forget, retain = examples(64, vocabulary, 1, "tofu"), examples(256, vocabulary, 2, "tofu")
    if form == "plain":
        list(plain_steps(toy, method, settings, forget, retain, 4, batch))
    else:
        our_steps(toy, method, settings, forget, retain, 4, batch)
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    """Read kilobytes from the kernel; unlike getrusage this starts anew in a child process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"{field} is not in /proc/self/status: the memory rows need Linux")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[2000, 32000])
    parser.add_argument("--lengths", nargs="+", default=["tofu", "windows"], choices=["tofu", "windows"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_child:
        form, case, vocabulary, batch = arguments.memory_child
        _memory_child(form, case, int(vocabulary), int(batch))
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, batch {arguments.batch}")
    rows = []
    for vocabulary in arguments.vocabulary:
        for lengths in arguments.lengths if vocabulary < 10000 else ["tofu"]:
            rows += measure(vocabulary, lengths, arguments.rounds, arguments.steps, arguments.batch, arguments.cases)
        if vocabulary >= 10000:
            rows += memory(vocabulary, arguments.batch)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
