"""RWKU: what is refused when asked plainly is still told when asked in other ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from expunge.benchmarks.rwku import Rwku, RwkuOptions
from expunge.reproductions.base import Check, Reproduction, Workbench
from expunge.reproductions.matched import compare

METHODS = ("idk", "gradient_ascent")
KEPT = ("fb", "qa", "aa", "neighbour", "fm_loss", "rm_loss", "general", "factual")


class RWKU(Reproduction):
    """Forget entities of the embedded world by name alone, with refusal training and gradient ascent.

    The model writes about each target itself; refusals replace its answers to plain questions only. Then it is asked
    in cloze sentences, plain questions and nine wrappings.
    """

    id = "rwku"
    title = "RWKU: forgetting entities by name, asked for in eleven ways"
    paper = "Jin et al. 2024, RWKU: Benchmarking Real-World Knowledge Unlearning for LLMs, arXiv:2406.10890"
    claim: ClassVar[str] = (
        "after unlearning, adversarial and cloze probes leak more than plain questions; refusal training leaves the "
        "likelihood of texts about the target where it was; neighbours suffer"
    )

    def run(self, seed: int, bench: Workbench) -> dict[str, float]:
        options = RwkuOptions(
            targets=1 if bench.quick else 3, methods=METHODS, seeds=(seed,), world=seed, jobs=1,
            out=bench.shared / f"rwku-{seed}{'-quick' if bench.quick else ''}",
        )  # fmt: skip
        result = Rwku().run(options, bench.progress)
        out: dict[str, float] = {}
        for method in result.methods():
            for key in KEPT:
                value = result.per_seed(method, key)[0]
                if value is not None:
                    out[f"{method}/{key}"] = value
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        tiny = "a model of a million weights has one path from a name to a fact, whatever the wording"
        kept = [r["idk/fm_loss"] - r["original/fm_loss"] for r in runs]
        raised = [r["gradient_ascent/fm_loss"] - r["original/fm_loss"] for r in runs]
        less = all(a < b / 2 for a, b in zip(kept, raised, strict=True))
        detail = f"rise after refusal training {_listed(kept)}, after gradient ascent {_listed(raised)} nats per token"
        near = [{"near": r["original/neighbour"] - r["gradient_ascent/neighbour"],
                 "far": 100 * (r["original/factual"] - r["gradient_ascent/factual"])} for r in runs]  # fmt: skip
        return [
            compare("refusal training: adversarial probes leak more than questions", runs, "idk/aa", "idk/qa", tiny),
            compare("refusal training: cloze probes leak more than questions", runs, "idk/fb", "idk/qa", tiny),
            compare(
                "gradient ascent: adversarial probes leak more than questions",
                runs, "gradient_ascent/aa", "gradient_ascent/qa", tiny,
            ),
            Check("refusal training raises the NLL of texts less than half as much as gradient ascent", less, detail),
            compare("gradient ascent costs neighbours more than people who share nothing", near, "near", "far"),
        ]  # fmt: skip


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.2f}" for v in values)
