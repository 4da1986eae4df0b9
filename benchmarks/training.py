"""Training step of every objective: the plain form against ours, side by side in one run.

    python benchmarks/training.py [--vocabulary 2000 32000] [--rounds 5] [--json FILE] [--markdown FILE]

The plain form is in ``plain_forms.py``: separate padded forwards of randomly drawn examples, a live copy of the
original model, logits at every position. "Published" is the same with the work that the field's common code repeats or
throws away. Ours is ``expunge.training.train`` with the method's own objective. Float32, AdamW, clipping, one thread. A
round is one epoch over 64 forget examples, each with the same retain partner and other answer in every form; only what
stands together in a batch differs. Rounds alternate which form goes first. CPU seconds are those of the process; wall
seconds stand beside them and mean little on a shared machine. What our reference cache costs before the first step is a
column of its own; the plain forms pay for it in every step instead. FLOPs are counted by torch. Memory is the peak of a
fresh process above what it held after importing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.methods.base import Run, settle
from expunge.methods.run import METHODS
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.training import loop
from expunge.training.loop import train
from expunge.training.plan import partners
from plain_forms import Part, Plain, Variant, loss_of

BLOCKS, RMU_LAYER, FORGET = 4, 1, 64


@dataclass(frozen=True)
class Case:
    """One objective.

    Attributes:
        method: id of the method.
        retain: its retain term.
        reference: whether the plain form keeps a live copy of the model.
        alternatives: lengths of other answers to the questions, where it reads any: short refusals, or long as answers.
        target: most that our CPU time may be of the plain form's.
    """

    method: str
    retain: str = "none"
    reference: bool = False
    alternatives: str = ""
    target: float = 1.0


CASES = {
    "gradient_ascent": Case("gradient_ascent"),
    "grad_diff + nll": Case("grad_diff", "nll"),
    "grad_diff + kl": Case("grad_diff", "kl", True, target=0.65),
    "npo + nll": Case("npo", "nll", True, target=0.9),
    "npo + kl": Case("npo", "kl", True, target=0.62),
    "simnpo + nll": Case("simnpo", "nll"),
    "simnpo + kl": Case("simnpo", "kl", True, target=0.65),
    "dpo + nll": Case("dpo", "nll", True, "short", 0.9),
    "dpo + kl": Case("dpo", "kl", True, "short", 0.65),
    "altpo + nll": Case("altpo", "nll", True, "long", 0.9),
    "idk + nll": Case("idk", "nll", False, "short"),
    "random_label": Case("random_label", "none", False, "long"),
    "wga + nll": Case("wga", "nll"),
    "satimp + nll": Case("satimp", "nll"),
    "undial": Case("undial", "none", True, target=0.6),
    "ceu": Case("ceu"),
    "flat": Case("flat", "none", False, "short"),
    "rmu": Case("rmu", "hidden", True, target=0.9),
    "pdu + nll": Case("pdu", "nll"),
}
FORMS = ("ours", "plain", "published")


class Toy(CausalLM):
    """A model without a tokenizer: the benchmark makes token ids directly."""

    def __init__(self, vocabulary: int):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=256, intermediate_size=688, num_hidden_layers=BLOCKS,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False,
        )  # fmt: skip
        super().__init__(AutoModelForCausalLM.from_config(config), _Tokens())


class _Tokens:
    bos_token_id, eos_token_id, pad_token_id, vocab_size, is_fast, chat_template = None, 0, 0, 1, True, None


def examples(count: int, vocabulary: int, seed: int, lengths: str) -> Encoded:
    """Random token sequences with TOFU-like lengths (question 12-30, answer 15-75 tokens), or windows of 128."""
    rng = np.random.default_rng(seed)
    tokens, starts = [], []
    for _ in range(count):
        prompt, answer = (40, 88) if lengths == "windows" else (int(rng.integers(12, 31)), int(rng.integers(15, 76)))
        tokens.append(rng.integers(1, vocabulary, prompt + answer))
        starts.append(prompt)
    return Encoded([f"{seed}-{i}" for i in range(count)], tokens, starts)


def other_answers(forget: Encoded, vocabulary: int, kind: str) -> Encoded:
    """One other answer to every question: 6 to 14 tokens as refusals have, or 15 to 75."""
    rng = np.random.default_rng(7)
    low, high = (6, 15) if kind == "short" else (15, 76)
    tokens = [
        np.concatenate([row[:start], rng.integers(1, vocabulary, int(rng.integers(low, high)))])
        for row, start in zip(forget.tokens, forget.starts, strict=True)
    ]
    return Encoded([f"{identity}#0" for identity in forget.ids], tokens, list(forget.starts))


def streams_of(case: Case, vocabulary: int, lengths: str) -> dict[str, Encoded]:
    """The examples of a case."""
    found = {"forget": examples(FORGET, vocabulary, 1, lengths), "retain": examples(256, vocabulary, 2, lengths)}
    if case.alternatives:
        found["alternative"] = other_answers(found["forget"], vocabulary, case.alternatives)
    return found


@dataclass
class Timing:
    """What an epoch took.

    Attributes:
        cpu, wall: seconds of all steps.
        once: CPU seconds before the first step.
        flops, tokens: of all steps; only where they were counted.
    """

    cpu: float = 0.0
    wall: float = 0.0
    once: float = 0.0
    flops: float = 0.0
    tokens: int = 0


def plain_steps(
    case: Case, variant: Variant, toy: Toy, streams: Mapping[str, Encoded], steps: int, batch: int, count: bool = False
) -> Timing:
    """Time the plain form."""
    model = toy.model
    keep = case.reference or (variant == "published" and case.method in ("wga", "satimp"))
    reference = copy.deepcopy(model).eval() if keep else None
    if case.method == "rmu" and variant == "plain":
        model.requires_grad_(False)
        for number in range(RMU_LAYER + 1):
            model.model.layers[number].mlp.down_proj.requires_grad_(True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01)
    plain, rng = Plain(model, reference, variant, RMU_LAYER), random.Random(0)
    model.train()
    order = rng.sample(range(len(streams["forget"])), steps * batch)
    partner = partners(streams["forget"], order, ranked(streams["retain"]), 0, 0)
    counter, start = FlopCounterMode(display=False), (time.process_time(), time.perf_counter())
    with counter if count else contextlib.nullcontext():
        for number in range(steps):
            some = slice(number * batch, (number + 1) * batch)
            picks = {"forget": order[some], "alternative": order[some], "retain": partner[some]}
            parts = {name: Part.of(pool.take(picks[name]), toy.device) for name, pool in streams.items()}
            loss_of(plain, case.method, case.retain, parts).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return Timing(
        time.process_time() - start[0], time.perf_counter() - start[1], flops=counter.get_total_flops() if count else 0
    )


def ranked(pool: Encoded) -> list[int]:
    """Indices in the order of ids, from which the plan draws partners."""
    return sorted(range(len(pool)), key=pool.ids.__getitem__)


def our_steps(
    case: Case, toy: Toy, streams: Mapping[str, Encoded], steps: int, batch: int, count: bool = False
) -> Timing:
    """Time ours: the method's own objective in the training loop."""
    own = {"retain": case.retain} if case.method not in ("ceu", "gradient_ascent") else {}
    if case.method == "rmu":
        own["layer"] = RMU_LAYER
    own |= {"batch_size": batch, "max_steps": steps, "epochs": 10**6, "warmup": 0.0, "micro_batch_size": None}
    method, settings = settle(METHODS.get(case.method), own)
    run = Run(train=settings)
    # No objective here reads the request: the streams are given.
    nothing = DeletionRequest(Dataset.from_list([{"id": "none", "prompt": "", "answer": "none"}]))
    objective = method.objective_for(toy, nothing, run)
    mask = method.confined(toy)
    found, marks, flops = Timing(), [], [0]
    began, original = time.process_time(), loop._Run._step

    def timed(self: Any, number: int) -> bool:
        if number == 0:
            found.once, before = time.process_time() - began, toy.cost.tokens
            marks.append((time.process_time(), time.perf_counter(), before))
        if not count:
            return original(self, number)
        with FlopCounterMode(display=False) as counter:
            done = original(self, number)
        flops[0] += counter.get_total_flops()
        return done

    def mark(done: int, total: int, values: Mapping[str, float]) -> None:
        marks.append((time.process_time(), time.perf_counter(), toy.cost.tokens))

    loop._Run._step = timed  # type: ignore[method-assign]
    try:
        train(toy, objective, {s: streams[s] for s in objective.streams()}, settings, mask=mask, progress=mark)
    finally:
        loop._Run._step = original  # type: ignore[method-assign]
    found.cpu, found.wall, found.tokens = (end - start for start, end in zip(marks[0], marks[-1], strict=True))
    found.flops = flops[0]
    return found


def steps_of(form: str, case: Case, vocabulary: int, lengths: str, steps: int, batch: int, count: bool) -> Timing:
    """Time one form on a fresh model."""
    toy, streams = Toy(vocabulary), streams_of(case, vocabulary, lengths)
    if form == "ours":
        return our_steps(case, toy, streams, steps, batch, count)
    return plain_steps(case, form, toy, streams, steps, batch, count)  # type: ignore[arg-type]


def measure(name: str, vocabulary: int, lengths: str, rounds: int, batch: int) -> dict[str, Any]:
    """Run a case in all forms, alternating, and return its row."""
    case, found = CASES[name], {form: [] for form in FORMS}
    steps = FORGET // batch
    counted = {form: steps_of(form, case, vocabulary, lengths, steps, batch, True) for form in FORMS}
    for number in range(rounds):
        for form in FORMS if number % 2 else FORMS[::-1]:
            found[form].append(steps_of(form, case, vocabulary, lengths, steps, batch, False))
    once = 1000 * statistics.median(t.once for t in found["ours"])
    row: dict[str, Any] = {"case": name, "vocabulary": vocabulary, "lengths": lengths, "batch": batch}
    row |= {"target": case.target, "once_ms": once}
    for form in FORMS:
        row[f"{form}_ms"] = 1000 * statistics.median(t.cpu for t in found[form]) / steps
        row[f"{form}_wall_ms"] = 1000 * statistics.median(t.wall for t in found[form]) / steps
        row[f"{form}_gflop"] = counted[form].flops / 1e9 / steps
    for form in FORMS[1:]:
        ratios = [ours.cpu / theirs.cpu for ours, theirs in zip(found["ours"], found[form], strict=True)]
        row[f"to_{form}"] = [statistics.median(ratios), min(ratios), max(ratios)]
        row[f"flops_to_{form}"] = counted["ours"].flops / max(1.0, counted[form].flops)
    row["steps_per_second"] = 1000 / row["ours_ms"]
    row["tokens_per_second"] = counted["ours"].tokens / steps * row["steps_per_second"]
    print(line(row), flush=True)
    return row


def line(row: Mapping[str, Any]) -> str:
    """A row in words, ratio first."""
    ratio, low, high = row["to_plain"]
    met = "met" if ratio <= row["target"] else "MISSED"
    return (
        f"{ratio:5.2f}x [{low:.2f}, {high:.2f}] of plain (target {row['target']:.2f} {met}), "
        f"{row['to_published'][0]:.2f}x of published  V={row['vocabulary']:<6}{row['lengths']:8}{row['case']:16} "
        f"{row['ours_ms']:6.0f} / {row['plain_ms']:6.0f} / {row['published_ms']:6.0f} ms  "
        f"FLOPs {row['flops_to_plain']:.2f} / {row['flops_to_published']:.2f}  once {row['once_ms']:.0f} ms"
    )


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(name: str, vocabulary: int, batch: int) -> dict[str, Any]:
    """Peak resident memory above import of a fresh process per form, TOFU lengths."""
    row: dict[str, Any] = {"case": name, "vocabulary": vocabulary}
    for form in FORMS:
        command = [sys.executable, __file__, "--memory-child", form, name, str(vocabulary), str(batch)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row[f"{form}_mb"] = float(out.strip().splitlines()[-1])
    for form in FORMS[1:]:
        row[f"to_{form}"] = row["ours_mb"] / row[f"{form}_mb"]
    print(
        f"{row['to_plain']:5.2f}x of plain, {row['to_published']:.2f}x of published  V={vocabulary:<6} memory  "
        f"{name:16} "
        f"{row['ours_mb']:6.0f} / {row['plain_mb']:6.0f} / {row['published_mb']:6.0f} MB above import",
        flush=True,
    )
    return row


def _memory_child(form: str, name: str, vocabulary: int, batch: int) -> None:
    before = _status("VmRSS")
    steps_of(form, CASES[name], vocabulary, "tofu", 4, batch, False)
    print((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    """Read kilobytes from the kernel; unlike getrusage this starts anew in a child process."""
    for entry in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if entry.startswith(field + ":"):
            return int(entry.split()[1])
    raise RuntimeError(f"{field} is not in /proc/self/status: the memory rows need Linux")


# ---- printing --------------------------------------------------------------------------------------------------------


def to_markdown(rows: list[dict[str, Any]], peaks: list[dict[str, Any]]) -> str:
    """The tables of ``docs/results/training_speed.md``."""
    out = []
    for vocabulary, lengths in dict.fromkeys((r["vocabulary"], r["lengths"]) for r in rows):
        out += [
            f"### Vocabulary {vocabulary}, {'TOFU lengths' if lengths == 'tofu' else 'windows of 128 tokens'}", "",
            "| objective | CPU time, ours / plain | target | ours / published | FLOPs, ours / plain | / published | "
            "ms per step: ours | plain | published | once, ms | steps/CPU-s | tokens/CPU-s |",
            "| --- |" + " ---: |" * 11,
        ]  # fmt: skip
        for r in rows:
            if (r["vocabulary"], r["lengths"]) != (vocabulary, lengths):
                continue
            (ratio, low, high), published = r["to_plain"], r["to_published"][0]
            met = "" if ratio <= r["target"] else " missed"
            out.append(
                f"| {r['case']} | **{ratio:.2f}** [{low:.2f}, {high:.2f}] | {r['target']:.2f}{met} | {published:.2f} | "
                f"{r['flops_to_plain']:.2f} | {r['flops_to_published']:.2f} | {r['ours_ms']:.0f} | "
                f"{r['plain_ms']:.0f} | {r['published_ms']:.0f} | {r['once_ms']:.0f} | {r['steps_per_second']:.2f} | "
                f"{r['tokens_per_second']:.0f} |"
            )
        out.append("")
    if peaks:
        out += [
            f"### Peak memory above import, vocabulary {peaks[0]['vocabulary']}, TOFU lengths", "",
            "| objective | ours / plain | ours / published | ours, MB | plain | published |", "| --- |" + " ---: |" * 5,
        ]  # fmt: skip
        out += [
            f"| {p['case']} | **{p['to_plain']:.2f}** | {p['to_published']:.2f} | {p['ours_mb']:.0f} | "
            f"{p['plain_mb']:.0f} | {p['published_mb']:.0f} |"
            for p in peaks
        ]
    return "\n".join(out) + "\n"


def runs(arguments: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """The cases to run, each with vocabulary and lengths."""
    for vocabulary in arguments.vocabulary:
        for lengths in arguments.lengths if vocabulary < 10000 else ["tofu"]:
            for name in arguments.cases:
                yield name, vocabulary, lengths


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[2000, 32000])
    parser.add_argument("--lengths", nargs="+", default=["tofu", "windows"], choices=["tofu", "windows"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--memory-child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_child:
        form, case, vocabulary, batch = arguments.memory_child
        _memory_child(form, case, int(vocabulary), int(batch))
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, batch {arguments.batch}")
    rows, peaks = [], []

    def write() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps({"steps": rows, "memory": peaks}, indent=1) + "\n", encoding="utf-8")
        if arguments.markdown:
            arguments.markdown.write_text(to_markdown(rows, peaks), encoding="utf-8")

    for name, vocabulary, lengths in runs(arguments):
        rows.append(measure(name, vocabulary, lengths, arguments.rounds, arguments.batch))
        write()
    for name in [] if arguments.no_memory else arguments.cases:
        peaks.append(memory(name, max(arguments.vocabulary), arguments.batch))
        write()


if __name__ == "__main__":
    main()
