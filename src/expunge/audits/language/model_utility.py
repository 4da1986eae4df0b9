"""Model utility: what the model must still be able to do, as one number over up to nine.

Source: Maini et al. 2024, TOFU, section 2.2.2: the harmonic mean of {probability, ROUGE-L recall, truth ratio} on
{retain set, real authors, world facts}. One zero makes it zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import SHARE, harmonic_mean
from expunge.audits.language.probability import answer_probability, normalised_probability
from expunge.audits.language.rouge import count_words, rouge_l
from expunge.audits.language.truth_ratio import Correct, Mean, correct_field, log_truth_ratios, retain_score
from expunge.audits.observations import Observations
from expunge.audits.values import Values

SETS = {"retain": "retain", "real_authors": "real authors", "world_facts": "world facts"}
MEASURES = {"probability": "probability", "rouge_recall": "ROUGE-L recall", "truth_ratio": "truth ratio"}


class ModelUtility(Audit):
    """The harmonic mean and each of the numbers in it; what could not be measured is named, never replaced."""

    id = "model_utility"
    title = "Can the model still do what it must?"
    reads = tuple((role, name) for role in SETS for name in ("answer", "perturbed_answers", "paraphrased_answer"))
    generates = tuple(SETS)
    paper = "Maini et al. 2024, TOFU (arXiv:2401.06121)"

    class Config(AuditConfig):
        """Settings of the model-utility audit."""

        real_authors: Path | None = Field(None, description="file of questions on real authors, with wrong answers")
        world_facts: Path | None = Field(None, description="file of questions on the world, with wrong answers")
        mean: Mean = Field("geometric", description="of the wrong answers' probabilities: geometric or arithmetic")
        parity: bool = Field(False, description="add 1e-10 to denominators, as open-unlearning does")
        resamples: int = Field(1000, ge=100, description="bootstrap resamples of the interval")

    def prepare(self, seen: Observations) -> None:
        for role in ("real_authors", "world_facts"):
            if (path := getattr(self.config, role)) is not None and role not in seen.examples.roles:
                from expunge.data.files import read_examples

                seen.examples.add(role, read_examples(path, role=role))

    def reading(self, seen: Observations) -> Sequence[tuple[str, str]]:
        reads = [(role, "answer") for role in SETS]
        for role in SETS:
            if any(row.get("perturbed_answers") for row in seen.rows(role).values()):
                reads += [(role, "perturbed_answers"), (role, self._correct(seen, role))]
        return reads

    def _correct(self, seen: Observations, role: str) -> str:
        return correct_field(seen, role, "auto") if role == "retain" else "answer"

    def run(self, seen: Observations) -> Finding:
        there = [role for role in SETS if seen.rows(role)]
        if not there:
            return Finding(self.id, "no data", note="there is no retain set, real authors or world facts")
        values = Values(seen)
        for model in seen.models:
            for role in there:
                for measure, found in self._measure(seen, model, role).items():
                    values.add(model, role, measure, found)
        names = [(role, measure) for role in SETS for measure in MEASURES]
        present = [pair for pair in names if values.get("unlearned", *pair)]
        missing = [f"{MEASURES[measure]} on {SETS[role]}" for role, measure in names if (role, measure) not in present]
        estimates: dict[str, dict[str, Estimate]] = {}
        for model in seen.models:
            parts: Mapping[str, Mapping[str, float]] = {
                f"{role}_{measure}": values.get(model, role, measure) for role, measure in present
            }
            total = harmonic_mean(parts, seed=seen.seed, resamples=self.config.resamples)
            estimates[model] = {"utility": total} | {
                f"{role}_{measure}": values.mean(model, role, measure, SHARE)
                if (role, measure) in present
                else Estimate(None, note=f"no {SETS[role]}" if role not in there else "nothing to measure it on")
                for role, measure in names
            }
        return Finding(
            self.id,
            scalars=[
                Scalar("utility", f"Model utility (harmonic mean of {len(present)} of 9)", "harmonic mean"),
                *(Scalar(f"{r}_{m}", f"{MEASURES[m].capitalize()}, {SETS[r]}", "share") for r, m in names),
            ],
            estimates=estimates,
            per_example=values.per_example(),
            attempted={"numbers": len(present), "examples": {role: len(seen.rows(role)) for role in there}},
            note=f"not in the harmonic mean: {', '.join(missing)}" if missing else "",
        )

    def _measure(self, seen: Observations, model: str, role: str) -> dict[str, dict[str, float]]:
        parity = self.config.parity
        answers, wrong = seen.scores(model, role), seen.scores(model, role, "perturbed_answers")
        if role == "retain":
            probability = {i: answer_probability(s) for i, s in answers.items()}
        else:
            probability = {i: normalised_probability(answers[i], others, parity) for i, others in wrong.items()}
        texts, rows = seen.generations(model, role), seen.rows(role)
        recall = {i: rouge_l(text, gold).recall for i, text in texts.items() if count_words(gold := rows[i]["answer"])}
        correct: Correct = "auto" if role == "retain" else "answer"
        logs = log_truth_ratios(seen, model, role, correct, self.config.mean, parity)
        ratio = {i: retain_score(value) for i, value in logs.items()}
        return {"probability": probability, "rouge_recall": recall, "truth_ratio": ratio}
