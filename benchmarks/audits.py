"""Audit suite: one pass per metric against one shared pass, side by side in one run.

    python benchmarks/audits.py [--examples 24] [--rounds 5] [--json FILE]

The plain way is what evaluation suites of the field do: every metric runs the model itself, in file order, in padded
batches of 32, with logits and log-softmax at every position (moments over the vocabulary for Min-K++ alone), and every
metric that needs generations makes its own with the library's ``generate``, to the longest limit of the batch. In a
second row, metrics defined through another one (PrivLeak through Min-K, forget quality and utility through truth
ratios, probabilities and ROUGE) take its values over, as the better suites do. Ours is ``run_audits``, with the
intervals, plots and evidence that the plain way does not make. Both see the same examples, float32, one thread. CPU
seconds of the process, medians of rounds that alternate; "scoring" is the same without generating. The model is trained
briefly first. Printed with it: how far the values are apart, what was run, and what one more likelihood metric costs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import hmean
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audits.base import Audit, Estimate, Finding, Scalar
from expunge.audits.language.exact_memorization import exact_memorization
from expunge.audits.language.extraction_strength import extraction_strength
from expunge.audits.language.forget_quality import forget_quality
from expunge.audits.language.membership import (
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    reference_score,
    zlib_score,
)
from expunge.audits.language.privleak import privleak
from expunge.audits.language.rouge import is_empty, rouge_l
from expunge.audits.language.truth_ratio import forget_score, log_truth_ratio, retain_score
from expunge.audits.observations import Observations
from expunge.audits.roc import auc
from expunge.audits.suite import AuditResult, run_audits
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.tokens import TokenScores

TARGET = 0.42
AUDITS = (
    "probability",
    "rouge",
    "truth_ratio",
    "extraction_strength",
    "exact_memorization",
    "membership",
    "privleak",
    "forget_quality",
    "model_utility",
)
ROLES = ("forget", "retain", "holdout")
Scored = dict[str, list[TokenScores]]


# ---- what is asked ---------------------------------------------------------------------------------------------------


def world(examples: int, vocabulary: int) -> tuple[PreTrainedTokenizerFast, DeletionRequest]:
    """Questions of 12 to 30 tokens and answers of 15 to 75, as in TOFU; a paraphrase and five wrong answers each."""
    rng = np.random.default_rng(0)
    words = [f"w{k}" for k in range(vocabulary - 3)]
    names = {word: k + 3 for k, word in enumerate(words)} | {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    backend = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )

    def text(low: int, high: int) -> str:
        return " ".join(words[k] for k in rng.integers(0, 200, int(rng.integers(low, high + 1))))

    def some(rich: bool) -> Dataset:
        rows = []
        for _ in range(examples):
            row = {"prompt": text(12, 30), "answer": text(15, 75)}
            more = {"paraphrased_answer": text(15, 75), "perturbed_answers": [text(15, 75) for _ in range(5)]}
            rows.append({"id": example_id(row), **row, **(more if rich else {})})
        return Dataset.from_list(rows)

    return tokenizer, DeletionRequest(some(True), some(True), some(False))


class Timed(CausalLM):
    """Keeps the CPU seconds of generating apart."""

    generating = 0.0

    def generate(self, *args: object) -> list[str]:
        began = time.process_time()
        out = super().generate(*args)
        Timed.generating += time.process_time() - began
        return out


def model(tokenizer: PreTrainedTokenizerFast, seed: int) -> CausalLM:
    """The Llama of 4.2 million parameters that the peers were measured with."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return Timed(LlamaForCausalLM(config).eval(), tokenizer)


def fit(lm: CausalLM, request: DeletionRequest, roles: Sequence[str], steps: int) -> None:
    """Train briefly, so that generations end by themselves."""
    rows = [row for role in roles for row in request.sets()[role].to_list()]
    rng, optimiser = np.random.default_rng(0), torch.optim.AdamW(lm.model.parameters(), lr=1e-3)
    for _ in range(steps):
        drawn = [rows[k] for k in rng.integers(0, len(rows), 16)]
        optimiser.zero_grad()
        lm.answer_nll([(row["prompt"], row["answer"]) for row in drawn]).backward()
        optimiser.step()
    lm.model.zero_grad()


# ---- the plain way ---------------------------------------------------------------------------------------------------


class Plain:
    """Runs the model for one metric at a time and keeps nothing."""

    def __init__(self, lm: CausalLM):
        self.lm, self.forwards, self.sequences, self.generations = lm, 0, 0, 0
        self.generating = 0.0

    def score(self, examples: Dataset, column: str, moments: bool = False) -> Scored:
        """Score a column in file order: all positions through the head, full log-softmax, a mask, moments if needed."""
        texts = [row[column] if isinstance(row[column], list) else [row[column]] for row in examples]
        pairs = [
            (i, prompt, t)
            for i, prompt, row in zip(examples["id"], examples["prompt"], texts, strict=True)
            for t in row
        ]
        out: Scored = {}
        for start in range(0, len(pairs), 32):
            batch = pairs[start : start + 32]
            encoded = self.lm.encoder.encode([(p, a) for _, p, a in batch])
            width = max(map(len, encoded.tokens))
            ids, mask = (
                torch.zeros(len(batch), width, dtype=torch.long),
                torch.zeros(len(batch), width, dtype=torch.long),
            )
            for b, row in enumerate(encoded.tokens):
                ids[b, : len(row)], mask[b, : len(row)] = torch.from_numpy(row), 1
            with torch.no_grad():
                logs = self.lm.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
                chosen = mean = var = logs.gather(-1, ids[:, 1:, None])[..., 0]
                if moments:
                    probs = logs.exp()
                    mean = (probs * logs).sum(-1)
                    var = (probs * logs.square()).sum(-1) - mean.square()
                hit = logs.argmax(-1) == ids[:, 1:]
            self.forwards += 1
            self.sequences += len(batch)
            for b, (identity, _, answer) in enumerate(batch):
                rows = slice(encoded.starts[b] - 1, len(encoded.tokens[b]) - 1)
                columns = [x[b, rows].double().numpy() for x in (chosen, mean, var)]
                out.setdefault(identity, []).append(TokenScores(*columns, hit[b, rows].numpy(), True, answer))
        return out

    def losses(self, examples: Dataset, column: str) -> dict[str, list[float]]:
        """Return the NLLs per token only."""
        return {i: [s.nll for s in row] for i, row in self.score(examples, column).items()}

    def generate(self, examples: Dataset, limits: Sequence[int]) -> dict[str, str]:
        """Continue prompts in file order with the library's generate, to the longest limit of each batch."""
        out: dict[str, str] = {}
        tokenizer, began = self.lm.tokenizer, time.process_time()
        for start in range(0, len(examples), 32):
            batch = examples[start : start + 32]
            prompts = self.lm.encoder.encode_prompts(batch["prompt"])
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
            longest = max(limits[start : start + 32])
            with torch.no_grad():
                full = self.lm.model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, pad_token_id=0
                )
            for k, identity in enumerate(batch["id"]):
                new = full[k, width:][: limits[start + k]]
                out[identity] = tokenizer.decode(new, skip_special_tokens=True).strip()
        self.generations += len(examples)
        self.generating += time.process_time() - began
        return out


def plain_suite(
    lms: dict[str, CausalLM], request: DeletionRequest, reuse: bool
) -> tuple[dict[str, float], dict[str, int]]:
    """Compute what ``AUDITS`` compute, metric by metric.

    Args:
        lms: "unlearned" and "oracle".
        request: what to ask.
        reuse: whether metrics defined through another metric take its values over.

    Returns:
        "model/number" -> value, and the counts.
    """
    out: dict[str, float] = {}
    kept: dict[tuple[str, str], object] = {}
    plain = {name: Plain(lm) for name, lm in lms.items()}
    sets = request.sets()

    def once(name: str, what: str, make: Callable[[], object]) -> object:
        if not reuse:
            return make()
        if (name, what) not in kept:
            kept[name, what] = make()
        return kept[name, what]

    def limits(role: str) -> list[int]:
        lm = next(iter(lms.values()))
        return [int(np.ceil(1.5 * lm.count_tokens(answer))) + 8 for answer in sets[role]["answer"]]

    def recall(name: str, role: str) -> float:
        said = plain[name].generate(sets[role], limits(role))
        gold = dict(zip(sets[role]["id"], sets[role]["answer"], strict=True))
        # An empty answer is damage on the retain set and says nothing elsewhere, as in the audit.
        counted = {i: text for i, text in said.items() if role == "retain" or not is_empty(text)}
        return float(np.mean([rouge_l(text, gold[i]).recall for i, text in counted.items()]))

    def probability(name: str, role: str) -> float:
        return float(np.mean([np.exp(-row[0]) for row in plain[name].losses(sets[role], "answer").values()]))

    def ratios(name: str, role: str) -> list[float]:
        right = plain[name].losses(sets[role], "paraphrased_answer")
        wrong = plain[name].losses(sets[role], "perturbed_answers")
        return [log_truth_ratio(right[i][0], row) for i, row in wrong.items()]

    def attack(name: str, score: Callable[[TokenScores], float]) -> float:
        moments = score is min_k_plus_plus_score
        scored = [plain[name].score(sets[role], "answer", moments) for role in ("forget", "holdout")]
        return auc(*([score(row[0]) for row in side.values()] for side in scored))

    for name in lms:
        for role in ROLES:
            out[f"{name}/{role}_probability"] = once(name, f"p {role}", lambda n=name, r=role: probability(n, r))
            out[f"{name}/{role}_rouge_recall"] = once(name, f"rouge {role}", lambda n=name, r=role: recall(n, r))
            for metric, function in (
                ("extraction_strength", extraction_strength),
                ("exact_memorization", exact_memorization),
            ):
                scores = plain[name].score(sets[role], "answer")
                out[f"{name}/{role}_{metric}"] = float(np.mean([function(row[0]) for row in scores.values()]))
        for role, aggregate in (("forget", forget_score), ("retain", retain_score)):
            found = once(name, f"ratio {role}", lambda n=name, r=role: ratios(n, r))
            out[f"{name}/{role}_truth_ratio"] = float(np.mean([aggregate(v) for v in found]))
        for metric, function in (
            ("loss", loss_score),
            ("zlib", zlib_score),
            ("min_k_plus_plus", min_k_plus_plus_score),
        ):
            out[f"{name}/{metric}_auc"] = attack(name, function)
        out[f"{name}/min_k_auc"] = once(name, "min_k", lambda n=name: attack(n, min_k_score))
    sides = []
    for role in ("forget", "holdout"):
        own, other = (plain[name].score(sets[role], "answer") for name in ("unlearned", "oracle"))
        sides.append([reference_score(row[0], other[i][0]) for i, row in own.items()])
    out["unlearned/reference_auc"] = auc(*sides)
    areas = [once(name, "min_k", lambda n=name: attack(n, min_k_score)) for name in ("unlearned", "oracle")]
    out["unlearned/privleak"] = privleak(*areas)
    both = [once(name, "ratio forget", lambda n=name: ratios(n, "forget")) for name in ("unlearned", "oracle")]
    out["unlearned/log10_p"] = forget_quality(*both).log10_p
    for name in lms:
        found = once(name, "ratio retain", lambda n=name: ratios(n, "retain"))
        parts = [
            once(name, "p retain", lambda n=name: probability(n, "retain")),
            once(name, "rouge retain", lambda n=name: recall(n, "retain")),
            float(np.mean([retain_score(v) for v in found])),
        ]
        out[f"{name}/utility"] = float(hmean(parts))
    counted = ("sequences", "forwards", "generations", "generating")
    totals = {k: sum(getattr(p, k) for p in plain.values()) for k in counted}
    return out, totals


# ---- ours ------------------------------------------------------------------------------------------------------------


class OneMore(Audit):
    """One more likelihood metric: the worst token of each answer."""

    id: ClassVar[str] = "one_more"
    title: ClassVar[str] = "How unlikely is the worst token?"
    paper: ClassVar[str] = "none"
    reads = (("forget", "answer"),)

    def run(self, seen: Observations) -> Finding:
        found = {m: {i: float(s.log_prob.min()) for i, s in seen.scores(m, "forget").items()} for m in seen.models}
        estimates: dict[str, dict[str, Estimate]] = {m: {"worst": seen.mean("forget", v)} for m, v in found.items()}
        return Finding(self.id, scalars=[Scalar("worst", "Worst token", "nats")], estimates=estimates)


def ours(lms: dict[str, CausalLM], request: DeletionRequest, *more: Audit) -> AuditResult:
    """Run the suite; a crash is an error here."""
    result = run_audits(lms, request, [*AUDITS, *more])
    wrong = {finding.audit: finding.note for finding in result.findings if finding.status != "measured"}
    if wrong:
        raise RuntimeError(f"not measured: {wrong}")
    return result


def ours_timed(
    lms: dict[str, CausalLM], request: DeletionRequest, *more: Audit
) -> tuple[AuditResult, dict[str, float]]:
    """Run the suite and say how long its generating took."""
    before = Timed.generating
    return ours(lms, request, *more), {"generating": Timed.generating - before}


def values_of(result: AuditResult) -> dict[str, float]:
    """Return "model/number" -> value of every estimate."""
    return {
        f"{name}/{scalar}": estimate.value
        for finding in result.findings
        for name, estimates in finding.estimates.items()
        for scalar, estimate in estimates.items()
        if estimate.value is not None
    }


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """Return the CPU seconds that some work took, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--examples", type=int, default=24, help="per example set")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--vocabulary", type=int, default=2048)
    options.add_argument("--steps", type=int, default=60, help="training steps before anything is measured")
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    torch.set_num_threads(1)
    tokenizer, request = world(args.examples, args.vocabulary)
    lms = {"unlearned": model(tokenizer, 0), "oracle": model(tokenizer, 1)}
    fit(lms["unlearned"], request, ("forget", "retain"), args.steps)
    fit(lms["oracle"], request, ("retain",), args.steps)
    times: dict[str, list[float]] = {row: [] for row in ("reuse", "shared", "alone", "one more")}
    scoring: dict[str, list[float]] = {row: [] for row in times}
    results: dict[str, tuple] = {}
    for _ in range(args.rounds):
        for row, work in (
            ("reuse", lambda: plain_suite(lms, request, True)),
            ("shared", lambda: ours_timed(lms, request)),
            ("alone", lambda: plain_suite(lms, request, False)),
            ("one more", lambda: ours_timed(lms, request, OneMore())),
        ):
            spent, results[row] = seconds(work)
            times[row].append(spent)
            scoring[row].append(spent - results[row][1]["generating"])
    report(args, times, scoring, results)


def report(args: argparse.Namespace, times: dict, scoring: dict, results: dict[str, tuple]) -> None:
    """Print the table, ratio first."""
    whole, part = ({row: statistics.median(spent) for row, spent in kind.items()} for kind in (times, scoring))
    shared, extended = results["shared"][0], results["one more"][0]
    found, plain = values_of(shared), results["reuse"][0]
    apart = {k: abs(found[k] - v) / max(1.0, abs(v)) for k, v in plain.items()}
    worst = max(apart, key=lambda k: apart[k])

    def total(result: AuditResult, what: str) -> int:
        return sum(getattr(counts, what) for counts in result.counts.values())

    counted = {row: results[row][1] for row in ("reuse", "alone")}
    counted["shared"] = {k: total(shared, f"{k}_run") for k in ("sequences", "generations")}
    counted["shared"]["forwards"] = total(shared, "forwards")
    print(f"# audits, {args.examples} examples per set, 2 models, {platform.machine()}, 1 thread, {args.rounds} rounds")
    print(
        f"{'':33}{'ratio':>7}{'CPU s':>8}{'ratio':>9}{'scoring':>9}{'sequences':>11}{'forwards':>10}{'generated':>11}"
    )
    titles = {"shared": "shared observations", "alone": "one pass per metric", "reuse": "the same, derived ones reused"}
    for row, title in titles.items():
        ratios = [f"{kind['shared'] / kind[row]:.3f}" for kind in (whole, part)]
        c = counted[row]
        print(
            f"{title:33}{ratios[0]:>7}{whole[row]:>8.2f}{ratios[1]:>9}{part[row]:>9.2f}"
            f"{c['sequences']:>11}{c['forwards']:>10}{c['generations']:>11}"
        )
    for row in ("alone", "reuse"):
        ratio = whole["shared"] / whole[row]
        print(f"at most {TARGET} of '{titles[row]}': {'met' if ratio <= TARGET else 'MISSED'} ({ratio:.3f})")
    print(f"largest difference of {len(apart)} values: {apart[worst]:.1e} ({worst})")
    added = {k: total(extended, k) - total(shared, k) for k in ("sequences_asked", "sequences_run", "forwards")}
    extra = whole["one more"] / whole["shared"] - 1
    print(f"one more metric: {added['forwards']} forwards, {added['sequences_run']} sequences, {extra:+.1%} CPU")
    if args.json:
        numbers = {"cpu_seconds": times, "scoring": scoring, "counts": counted, "difference": apart, "added": added}
        args.json.write_text(json.dumps(numbers, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
