"""Verifier: are the answers that a model gives right, by a grader that reads meaning where ROUGE counts words?

ROUGE calls "She was born in Velburg" and "She was born in Harrow Bay" nearly the same answer, and "Velburg" a poor one.
Here a small verifier is trained on the rows that are kept and held out, judges the answers to what was to be forgotten
against the true answer, and is itself measured on people or rows that it was not trained on. What cannot be trained
well enough is not used: the finding is then "no data" and says why.

Per-example statistic for the verdict: ``verified_right``, the probability that the answer is right.

Source: Baek et al. 2023, Knowledge-Augmented Language Model Verification (arXiv:2310.12836).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import mean_interval
from expunge.audits.language.rouge import is_empty
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.audits.verification import IRRELEVANT, LABELS, RIGHT, WRONG, Claim, Verifier, quality
from expunge.tasks.encoding import prompt_of

ROLES = ("forget", "retain", "holdout")
REFUSALS = ("I don't know.", "I'm not sure about that.", "I cannot answer this question.")
TESTED = 0.3  # share of the groups that the verifier is measured on
Pairs = list[tuple[Claim, int]]


def claims_of(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], seed: int) -> Pairs:
    """Make judged claims out of rows with true answers; no model and nobody has to label anything.

    Args:
        rows: prompt and answer, and where there are any, paraphrased_answer, perturbed_answers, value and group.
        others: where unfitting knowledge and answers come from.
        seed: of the draws.

    Returns:
        Per row: right answers (the answer, its paraphrase, the bare value), wrong ones (two perturbed answers or
        answers to other questions, a refusal, words in disorder), and answers given with knowledge about somebody else.
    """
    out: Pairs = []
    for row in rows:
        digest = hashlib.blake2b(f"{seed}|{row['id']}".encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        question, told = _question(row), str(row["answer"])
        strangers = [o for o in others if not _same(row, o) and o["answer"] != told]
        for right in (told, row.get("paraphrased_answer"), row.get("value")):
            if right:
                out.append((Claim(question, told, str(right)), RIGHT))
        wrong = [str(w) for w in row.get("perturbed_answers") or ()][:2]
        if strangers:
            drawn = [strangers[k] for k in rng.integers(len(strangers), size=4)]
            wrong = wrong or [str(drawn[0]["answer"]), str(drawn[1]["answer"])]
            words = str(drawn[2]["answer"]).split() + question.split()
            wrong.append(" ".join(words[k] for k in rng.permutation(len(words))))
            # What a model says that was shown something about somebody else: that, or something made up.
            out.append((Claim(question, str(drawn[3]["answer"]), str(drawn[3]["answer"])), IRRELEVANT))
            out.append((Claim(question, str(drawn[3]["answer"]), wrong[0]), IRRELEVANT))
        wrong.append(REFUSALS[int(rng.integers(len(REFUSALS)))])
        out += [(Claim(question, told, answer), WRONG) for answer in wrong]
    return out


def _question(row: Mapping[str, Any]) -> str:
    prompt = prompt_of(row)
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return row["id"] == other["id"] or bool(row.get("group") and row["group"] == other.get("group"))


class VerifierAudit(Audit):
    """Share of greedy answers that a verifier of measured accuracy finds right, per example set."""

    id = "verifier"
    title = "Are the answers right, judged by their meaning?"
    needs = ("retain",)
    generates = ROLES
    default = False
    paper = "Baek et al. 2023, Knowledge-Augmented Language Model Verification (arXiv:2310.12836)"

    class Config(AuditConfig):
        """Settings of the verifier audit."""

        least_rows: int = Field(
            24, ge=4, description="kept and held-out rows that it takes to train and measure a verifier"
        )
        most_rows: int = Field(400, ge=4, description="of these rows used at most, drawn by seed")
        least_accuracy: float = Field(
            0.8, gt=1 / 3, le=1, description="accuracy on pairs that were not trained on below which it is not used"
        )

    def run(self, seen: Observations) -> Finding:
        known = [row for role in ("retain", "holdout") for row in seen.rows(role).values()]
        known = sorted((r for r in known if r.get("answer") and _question(r)), key=lambda r: str(r["id"]))
        if len(known) < self.config.least_rows:
            why = f"{len(known)} kept and held-out rows with a prompt are too few to train a verifier"
            return Finding(self.id, "no data", note=f"{why}: give {self.config.least_rows}, or lower least_rows")
        order = np.random.default_rng(seen.seed).permutation(len(known))[: self.config.most_rows]
        verifier, checked, accuracy = self._train([known[k] for k in sorted(order)], seen.seed)
        if checked["accuracy"] < self.config.least_accuracy:
            why = f"the verifier is right on {checked['accuracy']:.0%} of pairs that it was not trained on"
            wanted = f"{self.config.least_accuracy:.0%} are asked for"
            fix = "give more rows, with wrong and paraphrased answers"
            return Finding(self.id, "no data", note=f"{why} and {wanted}: {fix}", attempted=checked)
        values, roles = Values(seen), [r for r in ROLES if seen.examples.prompts(r)]
        empty: dict[tuple[str, str], int] = {}
        for model in seen.models:
            for role in roles:
                said = seen.generations(model, role)
                # An empty answer says nothing about what a model knows, except where it is damage.
                counted = [i for i in said if role == "retain" or not is_empty(said[i])]
                empty[model, role] = len(said) - len(counted)
                rows = seen.rows(role)
                claims = [Claim(_question(rows[i]), str(rows[i]["answer"]), said[i]) for i in counted]
                found = verifier.probabilities(claims)
                right = {i: p for i, p in zip(counted, found, strict=True) if not is_empty(said[i])}
                nothing = dict.fromkeys((i for i in counted if i not in right), 0.0)
                values.add(model, role, "verified_right", {i: float(p[RIGHT]) for i, p in right.items()} | nothing)
                values.add(model, role, "right", {i: float(p.argmax() == RIGHT) for i, p in right.items()} | nothing)
        return Finding(
            self.id,
            scalars=[
                *(scalar for role in roles for scalar in _scalars(role)),
                Scalar("verifier_accuracy", "Accuracy of the verifier itself, on other people or rows", "share"),
            ],
            estimates={
                model: {
                    **{f"{role}_right": values.mean(model, role, "right") for role in roles},
                    **{
                        f"{role}_empty_answers": Estimate(float(empty[model, role]), n=len(seen.examples.prompts(role)))
                        for role in roles
                    },
                    "verifier_accuracy": accuracy,
                }
                for model in seen.models
            },
            per_example=values.per_example(),
            evidence=[
                *values.evidence("verified_right", "forget", "high"),
                *values.evidence("verified_right", "retain", "high"),
            ],
            attempted=checked,
            note="; ".join(f"{n} empty answers of {model} on {role}" for (model, role), n in empty.items() if n),
        )

    def _train(self, known: Sequence[Mapping[str, Any]], seed: int) -> tuple[Verifier, dict[str, Any], Estimate]:
        """Train on some groups, measure on the others, and train again on all."""
        groups = sorted({str(row.get("group") or row["id"]) for row in known})
        rng = np.random.default_rng(seed)
        held = {groups[k] for k in rng.permutation(len(groups))[: max(1, round(TESTED * len(groups)))]}
        inside = [row for row in known if str(row.get("group") or row["id"]) not in held]
        outside = [row for row in known if str(row.get("group") or row["id"]) in held]
        trained, tested = claims_of(inside, inside, seed), claims_of(outside, known, seed)
        verifier = Verifier.fit([c for c, _ in trained], [label for _, label in trained])
        measured = quality(verifier.judge([c for c, _ in tested]).tolist(), [label for _, label in tested])
        everything = claims_of(known, known, seed)
        checked = {
            "trained on": len(trained),
            "measured on": len(tested),
            "accuracy": measured.accuracy,
            "precision of right": measured.precision,
            "recall of right": measured.recall,
            **{f"accuracy, {name} against the rest": measured.one_vs_rest[name] for name in LABELS},
        }
        owner = [str(row.get("group") or row["id"]) for row in outside for _ in claims_of([row], known, seed)]
        accuracy = mean_interval([float(ok) for ok in measured.right], owner, seed=seed)
        return Verifier.fit([c for c, _ in everything], [label for _, label in everything]), checked, accuracy


def _scalars(role: str) -> list[Scalar]:
    return [
        Scalar(f"{role}_right", f"Answers judged right, {role}", "share", "high" if role == "forget" else "none"),
        Scalar(f"{role}_empty_answers", f"Empty answers, {role}", "answers", digits=0),
    ]
