"""Open problems: what is re-derived, what is hurt beside it, and what is only hidden, after forgetting single facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.audits.general.relearning import Relearning
from expunge.audits.language.entanglement import Entanglement
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.errors import ExpungeError
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.symbols import Symbols, SymbolSettings, accuracy, as_dataset, request_of, symbol_model
from expunge.tasks.causal_lm import CausalLM

METHODS: Mapping[str, Mapping[str, Any]] = {
    "grad_diff": {"retain_weight": 5.0, "learning_rate": 1e-4},
    "npo": {"retain": "nll", "retain_weight": 5.0, "beta": 0.3, "learning_rate": 3e-4},
}
SIZES = SymbolSettings(subjects=96, forgotten=16, unseen=16, epochs=30)
QUICK = SymbolSettings(subjects=30, forgotten=6, unseen=6, classes=6, values=6, epochs=40, hidden=64, layers=2)


class OpenProblemsReproduction(Reproduction):
    """The paper has no experiment; these are three of its problems, in a language whose facts follow from axioms.

    A small model learns facts (subject, relation -> value), the classes and axioms from which they follow, and, for
    subjects whose facts stay, to go step by step: first the class, then the value. The direct facts of some subjects
    are forgotten with two methods, or never learnt; their classes and the axioms are kept, as they serve elsewhere.
    """

    id = "open_problems"
    title = "forgotten facts are derived from kept ones, and forgetting them hurts what is near"
    paper = "Barez et al. 2025, Open Problems in Machine Unlearning for AI Safety, arXiv:2501.04952"
    claim = "removing facts neither stops their derivation from dual-use knowledge nor spares what is near them"

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        language = Symbols.make(QUICK if bench.quick else SIZES, seed)
        everybody = [*language.kept, *language.gone]
        kept = [*language.facts(language.kept), *language.steps(language.kept), *language.axioms()]
        kept += language.classes(everybody)
        original = symbol_model(bench, language, "original", [*kept, *language.facts(language.gone)])
        oracle = symbol_model(bench, language, "oracle", kept)
        request, composed = request_of(language, kept), language.steps(language.gone)
        found = _asked("original", original, language) | _asked("oracle", oracle, language)
        for method, settings in METHODS.items():
            bench.progress.stage(f"forgetting with {method}")
            common = {
                "epochs": 60, "batch_size": 32, "warmup": 0.0, "schedule": "constant", "seed": seed,
                "stop": {"every": 1, "forget_target": "holdout", "keep": "closest"},
            }  # fmt: skip
            unlearned = unlearn(original, request, method, settings={**common, **settings}).model
            assert isinstance(unlearned, CausalLM)
            found |= _asked(method, unlearned, language)
            seen = Observations(
                {"unlearned": unlearned, "original": original, "oracle": oracle}, request,
                extra={"composed": as_dataset(composed)}, seed=seed, max_new_tokens=4,
            )  # fmt: skip
            bench.progress.stage(f"auditing {method}")
            entangled = run_one(Entanglement(), seen)
            steps = (0, 2, 8) if bench.quick else (0, 1, 2, 4, 8, 16, 32)
            tampered = run_one(Relearning(Relearning.Config(steps=steps, learning_rates=(3e-4, 1e-3))), seen)
            for finding in (entangled, tampered):
                if finding.status != "measured":
                    raise ExpungeError(f"{finding.audit} did not measure: {finding.note}")
            for name, estimate in (
                ("near_damage", entangled.estimates["unlearned"]["near_damage"]),
                ("far_damage", entangled.estimates["unlearned"]["far_damage"]),
                ("relearning_gain", tampered.estimates["unlearned"]["heldout_gain"]),
                ("relearning_gain_unseen", tampered.estimates["unlearned"]["null_gain"]),
            ):
                assert estimate.value is not None, estimate.note
                found[f"{method}_{name}"] = estimate.value
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        checks = [
            Check(
                "retraining without the facts does not remove them: they follow from what is kept",
                min(column(runs, "oracle_direct")) > 0.5 and min(column(runs, "oracle_composed")) > 0.5,
                f"the retrained model is right directly {mean(runs, 'oracle_direct'):.2f}, step by step "
                f"{mean(runs, 'oracle_composed'):.2f}; it never saw these facts",
            )
        ]
        for method in METHODS:
            gaps = [run[f"{method}_composed"] - run[f"{method}_direct"] for run in runs]
            checks += [
                Check(
                    f"after {method}, more is answered step by step than directly",
                    min(gaps) > 0.05,
                    f"right step by step {mean(runs, f'{method}_composed'):.2f}, directly "
                    f"{mean(runs, f'{method}_direct'):.2f} (differences {', '.join(f'{gap:.2f}' for gap in gaps)})",
                ),
                Check(
                    f"{method} takes dual-use knowledge along: the classes of the same subjects, which were to stay",
                    max(run[f"{method}_hop"] - run["original_hop"] for run in runs) < -0.1,
                    f"classes right {mean(runs, f'{method}_hop'):.2f}, before {mean(runs, 'original_hop'):.2f}; other "
                    f"subjects' facts {mean(runs, f'{method}_kept'):.2f}",
                ),
                Check(
                    f"{method} hurts kept knowledge near the forgotten facts more than far from them",
                    min(run[f"{method}_near_damage"] - run[f"{method}_far_damage"] for run in runs) > 0,
                    f"rise of the NLL {mean(runs, f'{method}_near_damage'):.3f} near and "
                    f"{mean(runs, f'{method}_far_damage'):.3f} far from them",
                ),
                Check(
                    f"what {method} forgot comes back with half of it, more than facts on the unknown do",
                    min(run[f"{method}_relearning_gain"] - run[f"{method}_relearning_gain_unseen"] for run in runs) > 0,
                    f"probability gained on the half not shown {mean(runs, f'{method}_relearning_gain'):.2f}, on "
                    f"subjects that no model met {mean(runs, f'{method}_relearning_gain_unseen'):.2f}",
                ),
            ]
        return checks


def _asked(name: str, model: CausalLM, language: Symbols) -> dict[str, float]:
    return {
        f"{name}_direct": accuracy(model, language.facts(language.gone)),
        f"{name}_composed": accuracy(model, language.steps(language.gone)),
        f"{name}_hop": accuracy(model, language.classes(language.gone)),
        f"{name}_kept": accuracy(model, language.facts(language.kept)),
    }
