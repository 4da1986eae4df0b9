"""Ununlearning: what context gives back to a model that never knew, and what stops it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.audits.language.ununlearning import Ununlearning, recovery
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.errors import ExpungeError
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.symbols import Symbols, SymbolSettings, accuracy, request_of, symbol_model
from expunge.tasks.causal_lm import CausalLM

ALIAS = "x7"
FAMILIES = ("none", "definition", "alias", "premises", "irrelevant")
QUICK = SymbolSettings(subjects=24, forgotten=6, unseen=6, classes=6, values=6, strangers=20, episodes=400, epochs=12)


def filtered(prompt: str, names: Collection[str]) -> str:
    """Return a prompt without the sentences of its context that name somebody; the question stays.

    Args:
        prompt: sentences that end in " . ", then the question.
        names: whom nothing may be said about.
    """
    *context, question = prompt.split(" . ")
    return " . ".join([*(text for text in context if not set(text.split()) & set(names)), question])


def best_guess(kept: Sequence[Mapping[str, Any]], gone: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of facts that whoever always says the most frequent kept value of a relation gets right."""
    values: dict[str, Counter[str]] = {}
    for row in kept:
        values.setdefault(row["prompt"].split()[1], Counter())[row["answer"]] += 1
    said = {relation: found.most_common(1)[0][0] for relation, found in values.items()}
    return float(np.mean([said[row["prompt"].split()[1]] == row["answer"] for row in gone]))


class UnunlearningReproduction(Reproduction):
    """The paper has no experiment; this is one, in a language whose facts follow from axioms.

    A small model learns axioms, facts about subjects, and episodes in which it is told the class of a stranger and has
    to derive a value. The facts of some subjects are forgotten with NPO, or never learnt. Then the class of such a
    subject is told in context: the value is not, but it follows from an axiom that had to stay.
    """

    id = "ununlearning"
    title = "context gives back what was forgotten, also to a model that never knew"
    paper = "Shumailov et al. 2024, UnUnlearning, arXiv:2407.00106"
    claim = "even exact unlearning does not stop use of knowledge given in context, so that inputs must be filtered too"

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        language = Symbols.make(QUICK if bench.quick else SymbolSettings(), seed)
        episodes = [row for kind in ("premise", "reading", "distracted") for row in language.episodes(kind)]
        common = [*language.axioms(), *episodes]
        kept, gone = language.facts(language.kept), language.facts(language.gone)
        original = symbol_model(bench, language, "original", [*common, *kept, *gone])
        oracle = symbol_model(bench, language, "oracle", [*common, *kept])
        request = request_of(language, [*kept, *language.axioms(), *episodes[:: max(1, len(episodes) // 300)]])
        bench.progress.stage("forgetting")
        settings = {
            "retain": "nll", "retain_weight": 5.0, "beta": 0.3, "learning_rate": 3e-4, "epochs": 60, "batch_size": 32,
            "warmup": 0.0, "schedule": "constant", "seed": seed,
            "stop": {"every": 1, "forget_target": "holdout", "keep": "closest"},
        }  # fmt: skip
        unlearned = unlearn(original, request, "npo", settings=settings).model
        assert isinstance(unlearned, CausalLM)
        models = {"unlearned": unlearned, "original": original, "oracle": oracle}
        finding = run_one(Ununlearning(Ununlearning.Config(alias=ALIAS)), Observations(models, request, seed=seed))
        if finding.status != "measured":
            raise ExpungeError(f"the audit did not measure: {finding.note}")
        found = {f"{name}_right": accuracy(model, gone) for name, model in models.items()}
        found["guess"] = best_guess(kept, gone)
        for model, estimates in finding.estimates.items():
            for family in FAMILIES:
                found[f"{model}_{family}"] = _value(estimates[f"probability_{family}"])
            for family in ("definition", "alias", "premises"):
                found[f"{model}_recovery_{family}"] = _value(estimates[f"recovery_{family}"])
        found["excess_premises"] = _value(finding.estimates["unlearned"]["excess_premises"])
        return found | self._filter(language, models, found)

    def _filter(
        self, language: Symbols, models: Mapping[str, CausalLM], found: Mapping[str, float]
    ) -> dict[str, float]:
        """Filter contexts that name a forgotten subject, told under its own name or under another one."""
        names = {f"s{s}" for s in language.gone}
        rows = language.facts(language.gone)
        out = {}
        for model in ("unlearned", "oracle"):
            for told, as_name in (("premises", None), ("alias_premises", ALIAS)):
                pairs = []
                for row in rows:
                    prompt = f"{row['premises']} {row['prompt']}"
                    prompt = prompt.replace(f"{row['group']} ", f"{as_name} ") if as_name else prompt
                    pairs.append((filtered(prompt, names), str(row["answer"])))
                after = float(np.mean([s.probability for s in models[model].score(pairs)]))
                # Behind the filter the question may stand alone, so that is what the share is of.
                share = recovery(after, found[f"{model}_none"], found["original_none"])
                if share is not None:
                    out[f"{model}_filtered_{told}"] = share
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        def share(key: str) -> str:
            return f"{mean(runs, key):.2f} (seeds {', '.join(f'{v:.2f}' for v in column(runs, key))})"

        def all_of(key: str, least: float) -> bool:
            return min(column(runs, key)) >= least

        def none_of(key: str, most: float) -> bool:
            return max(column(runs, key)) <= most

        return [
            Check(
                "a model that never met the subjects does not know their values",
                max(run["oracle_right"] - run["guess"] for run in runs) <= 0.1,
                f"right without context {share('oracle_right')}; always the most frequent value {share('guess')}; the "
                f"original {share('original_right')}",
            ),
            Check(
                "told a subject's class, it derives the values, which are not in the context",
                all_of("oracle_recovery_premises", 0.5),
                f"share of the original's knowledge back {share('oracle_recovery_premises')}",
            ),
            Check(
                "so does the unlearned model",
                all_of("unlearned_recovery_premises", 0.5),
                f"share back {share('unlearned_recovery_premises')}",
            ),
            Check(
                "that is no residue of unlearning: it is not more than in the model that never knew",
                none_of("excess_premises", 0.1),
                f"rise over irrelevant text beyond the retrained model's {share('excess_premises')}",
            ),
            Check(
                "a filter of contexts that name the subject stops it",
                none_of("unlearned_filtered_premises", 0.1),
                f"share back behind the filter {share('unlearned_filtered_premises')}",
            ),
            Check(
                "the same filter lets the premise through under another name",
                all_of("unlearned_filtered_alias_premises", 0.5),
                f"share back behind the filter {share('unlearned_filtered_alias_premises')}",
            ),
        ]


def _value(estimate: Any) -> float:
    if estimate.value is None:
        raise ExpungeError(f"nothing was measured: {estimate.note}")
    return float(estimate.value)
