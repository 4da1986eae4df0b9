"""Concept vectors: are the value vectors that carried a concept still there, and does the model still use them?

Every concept (a group of the forget set, or one of a file in the published format) is looked for in the original model:
value vectors whose projection on the vocabulary names it and that write its answers. They count as its trace only if
damaging them hurts its questions more than other questions, and more than damage to random vectors of the same layers
does. Where no trace is found, the audit says so with its null and measures nothing: an absent trace is no removal.

The intrinsic numbers compare the same places of two models, so they tell about a model that was edited. A model trained
from other random weights has nothing at these places to compare; for it, read what is found anew.

Statistic for the verdict, per concept: ``trace_jaccard``, the share of top tokens that the trace keeps, against that of
the oracles, which have nothing there. It needs at least 8 traces and an oracle. It shows that what carried the
knowledge was left alone; that it changed alone shows nothing, as units can be permuted.

Source: Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces (arXiv:2406.11614). The
damage is scaled by the vector's length (the paper's noise is 0.1 per coordinate at every width), and both signs count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Evidence, Finding
from expunge.audits.concept_report import SCALARS, damage_plots, missing_note, overview_table, vector_table
from expunge.audits.concept_traces import OpenModel, Trace, best_cosines, compare_vectors
from expunge.audits.concepts import Concept, published_concepts, requested_concepts
from expunge.audits.inspector import NoWeights, opened
from expunge.audits.intervals import mean_interval
from expunge.audits.language.rouge import is_empty, rouge_l
from expunge.audits.observations import Observations
from expunge.data.concept_vectors import read_concepts
from expunge.errors import BadInput, UnsupportedModel
from expunge.selections.localisation import Judge, LocateSettings, concept_tokens, describe, locate
from expunge.tasks.feed_forward import vectors_at

SHOWN = 8  # top tokens that a table shows
LEAST_TRACES = 8  # the verdict calls nothing equivalent on fewer units
INTRINSIC = ("jaccard", "jaccard_same_head", "cosine", "l2", "matched_cosine", "random_jaccard", "random_cosine")


def sentence_bleu(prediction: str, reference: str, *, parity: bool = False) -> float:
    """Return BLEU-4 of a sentence on words between spaces, smoothed by method 3 of Chen & Cherry (2014).

    Args:
        prediction: the answer.
        reference: what it is compared with.
        parity: swap the two as the authors' code does, which changes the brevity penalty.
    """
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as bleu

    said, gold = (reference, prediction) if parity else (prediction, reference)
    if not said.split() or not gold.split():
        return 0.0
    return float(bleu([gold.split()], said.split(), smoothing_function=SmoothingFunction().method3))


def distinct_rouge_l(prediction: str, reference: str) -> float:
    """Return what the authors' code reports as ROUGE-L (for parity only): the F1 of *distinct* words.

    Of every sentence of the one text with every sentence of the other, the words of a longest common subsequence are
    put into one set; its size is set against the numbers of different words. So a word that is repeated counts once,
    and the order of sentences does not matter. Words lie between spaces, sentences end at a full stop anywhere.

    Args:
        prediction: the answer.
        reference: what it is compared with.
    """
    said, gold = ([part.split() or [""] for part in text.split(".") if part] for text in (prediction, reference))
    shared: set[str] = set()
    for mine in said:
        for other in gold:
            shared |= _common_words(mine, other)
    shares = [len(shared) / max(1, len({word for part in parts for word in part})) for parts in (said, gold)]
    return 2 * shares[0] * shares[1] / (sum(shares) + 1e-8)


def _common_words(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """Return the words of the longest common subsequence that drops words of the second first."""
    length = np.zeros((len(first) + 1, len(second) + 1), dtype=np.int64)
    for i, word in enumerate(first, 1):
        for j, other in enumerate(second, 1):
            length[i, j] = length[i - 1, j - 1] + 1 if word == other else max(length[i - 1, j], length[i, j - 1])
    i, j, found = len(first), len(second), set()
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            found.add(first[i])
        elif length[i - 1, j] > length[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found


class ConceptVectors(Audit):
    """Localisation, causal validation, and intrinsic and behavioural change per concept."""

    id = "concept_vectors"
    title = "Are the vectors that carried the concept still there?"
    family = "parametric"
    default = False
    needs = ("original", "retain")
    generates = ("forget", "retain")
    paper = "Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces (arXiv:2406.11614)"
    judge: Judge | None = None  # set it on an instance to let it rate token lists; none is needed

    class Config(AuditConfig):
        """Settings of the concept-vector audit."""

        concepts: Path | None = Field(
            None, description="file in the ConceptVectors format; if unset, each group of the forget set is a concept"
        )
        modules: str | None = Field(
            None,
            description="name of the feed-forward output matrix within a block, * as wildcard; if unset, known names",
        )
        max_concepts: int = Field(20, ge=1, description="concepts at most")
        vectors: int = Field(8, ge=1, description="value vectors per concept at most")
        top_k: int = Field(
            200, ge=1, description="tokens of a projection that are compared, at most a twentieth of the vocabulary"
        )
        null_vectors: int = Field(512, ge=20, description="random vectors per layer that the search is compared with")
        level: float = Field(0.002, gt=0, lt=1, description="share of random vectors that may pass the search")
        strengths: tuple[float, ...] = Field(
            (1.0, 2.0, 4.0), min_length=1, description="damage: length of the noise over length of the vector"
        )
        controls: int = Field(19, ge=19, description="sets of random vectors that the damage is compared with")
        unrelated: int = Field(20, ge=2, description="unrelated questions")
        significance: float = Field(0.05, gt=0, lt=1, description="p of the damage from which a trace counts")
        max_new_tokens: int = Field(100, ge=1, description="length of answers to the questions of a file")
        parity: bool = Field(
            False, description="as the authors' code: BLEU with the arguments swapped, ROUGE-L of distinct words"
        )

    def prepare(self, seen: Observations) -> None:
        if self.config.concepts is not None:
            read_concepts(self.config.concepts)

    def run(self, seen: Observations) -> Finding:
        concepts = [c for c in self._concepts(seen) if c.target and c.unrelated]
        if not concepts:
            return Finding(self.id, "no data", note="no concept has both questions of its own and unrelated ones")
        measured: dict[str, OpenModel] = {}
        try:
            original = self._open(seen, "original")
            searched = sum(len(m.vectors) for m in original.matrices)
            settings = self._settings(original, seen.seed)
            traces = [self._trace(original, concept, settings) for concept in concepts]
            twins: dict[int, str] = {id(seen.models["original"]): "original"}
            for name in sorted(seen.models, key=lambda name: name != "original"):
                twin = twins.setdefault(id(seen.models[name]), name)
                if twin in measured:
                    measured[name] = measured[twin]
                    continue
                model = original if twin == "original" else self._open(seen, name)
                self._measure(model, original, traces, settings)
                seen.spend(name, model.task.cost)
                measured[name] = model
                if model is not original:
                    model.close()
        except (NoWeights, UnsupportedModel) as error:
            return Finding(self.id, "no data", note=str(error))
        found = [trace for trace in traces if not trace.why]
        return Finding(
            self.id,
            scalars=SCALARS,
            estimates={name: self._estimates(seen, name, measured[name], traces) for name in seen.models},
            evidence=_evidence(seen, measured),
            plots=damage_plots({name: measured[name] for name in seen.models}, self.config.strengths) if found else [],
            tables=[overview_table(traces), *(vector_table(trace, original, measured["unlearned"]) for trace in found)],
            attempted={
                "value vectors searched": searched,
                "random vectors per layer": self.config.null_vectors,
                "top tokens": settings.top_k,
                "damage": [f"{c:g} x length" for c in self.config.strengths],
                "control sets": self.config.controls,
                "concepts": [trace.concept.name for trace in traces],
            },
            note=missing_note(traces),
        )

    def find(self, seen: Observations) -> list[Trace]:
        """Return what is found about every concept in the original model, and compare no other with it.

        Raises:
            NoWeights, UnsupportedModel: the original cannot be opened, or has no value vectors of a known name.
        """
        original = self._open(seen, "original")
        settings = self._settings(original, seen.seed)
        found = self._concepts(seen, ask=False)
        return [self._trace(original, concept, settings) for concept in found if concept.target and concept.unrelated]

    def _concepts(self, seen: Observations, *, ask: bool = True) -> list[Concept]:
        c = self.config
        if c.concepts is None:
            return requested_concepts(seen, c.max_concepts, c.unrelated, ask=ask)
        return published_concepts(seen, c.concepts, c.max_concepts, c.unrelated, c.max_new_tokens)

    def _open(self, seen: Observations, name: str) -> OpenModel:
        return OpenModel.of(opened(seen.models[name], name), self.config.modules)

    def _settings(self, original: OpenModel, seed: int) -> LocateSettings:
        top = min(self.config.top_k, max(10, original.head.weight.shape[0] // 20))
        return LocateSettings(self.config.vectors, top, self.config.null_vectors, self.config.level, seed=seed)

    # ---- what is measured ------------------------------------------------------------------------------------------

    def _trace(self, model: OpenModel, concept: Concept, settings: LocateSettings) -> Trace:
        trace = Trace(concept)
        try:
            trace.tokens = tuple(concept_tokens(model.task, concept.texts, concept.background))
        except BadInput:
            trace.why = "its texts have no tokens that the others lack"
            return trace
        asked = model.contrast(concept)
        if concept.places:
            trace.candidates = tuple(
                describe(model.task, model.matrices, place, trace.tokens, model.head, settings, asked)
                for place in concept.places
            )
        else:
            trace.located = locate(
                model.task, model.matrices, trace.tokens, settings,
                head=model.head, asked=asked, name=concept.name, judge=self.judge,
            )  # fmt: skip
            trace.candidates = trace.located.candidates
        if trace.candidates:
            strength = max(self.config.strengths)
            trace.validate(model, strength, self.config.controls, self.config.significance, settings.seed)
            if concept.places:  # somebody else vouches for them: they are looked at whatever damage shows
                trace.remark, trace.why = trace.why, ""
        else:
            trace.why = "no value vector names it more than random vectors do and adds to its answers"
        return trace

    def _measure(
        self, model: OpenModel, original: OpenModel, traces: Sequence[Trace], settings: LocateSettings
    ) -> None:
        """Compare the places of each trace, damage them, and look for the concept anew."""
        rng = np.random.default_rng([settings.seed, 2])
        for trace in traces:
            name, places = trace.concept.name, trace.places
            if trace.tokens:
                anew = trace.located if model is original else None
                anew = anew or locate(model.task, model.matrices, trace.tokens, settings, head=model.head)
                model.anew[name] = anew.best_score
            if trace.why or model.other:
                continue
            signs = torch.tensor([[c.sign] for c in trace.candidates])
            elsewhere = original.random_places(places, rng)
            before = vectors_at(original.matrices, places) * signs
            try:
                after = vectors_at(model.matrices, places) * signs
                random = vectors_at(original.matrices, elsewhere), vectors_at(model.matrices, elsewhere)
            except BadInput:
                after = before[:, :0]
            if before.shape != after.shape or original.head.weight.shape != model.head.weight.shape:
                model.other = "another architecture: the places of the original's vectors do not exist in it"
                continue
            heads = original.head.weight.cpu(), model.head.weight.cpu()
            found = compare_vectors(before, after, *heads, settings.top_k)
            found |= {f"random_{k}": v for k, v in compare_vectors(*random, *heads, settings.top_k).items()}
            found["matched_cosine"] = best_cosines(before, places, model.matrices)
            for metric, values in found.items():
                model.numbers.setdefault(metric, {})[name] = values
            model.says[name] = model.tokens_of(after, SHOWN)
            model.damage[name] = {
                c: model.rises(trace.concept, places, c, settings.seed) for c in (0.0, *self.config.strengths)
            }
            if model is not original:
                back = [
                    model.grafted(trace.concept, dict(zip(at, vectors_at(original.matrices, at), strict=True)))
                    for at in (places, elsewhere)
                ]
                model.grafts[name] = back[0], back[1]

    # ---- what is reported ------------------------------------------------------------------------------------------

    def _estimates(
        self, seen: Observations, name: str, model: OpenModel, traces: Sequence[Trace]
    ) -> dict[str, Estimate]:
        absent = Estimate(None, note=model.other or "no concept has a localised trace, so there is nothing to compare")

        def mean(rows: Sequence[tuple[float, str]]) -> Estimate:
            if not rows:
                return absent
            return mean_interval([value for value, _ in rows], [concept for _, concept in rows], seed=seen.seed)

        out = {"located": mean_interval([float(not (trace.why or trace.remark)) for trace in traces], seed=seen.seed)}
        for metric in INTRINSIC:
            out[metric] = mean([(v, c) for c, values in model.numbers.get(metric, {}).items() for v in values])
        strength = max(self.config.strengths)
        for k, metric in enumerate(("damage_target", "damage_unrelated")):
            out[metric] = mean([(v, c) for c, curve in model.damage.items() for v in curve[strength][k]])
        for k, metric in enumerate(("graft_target", "graft_random")):
            # A fall of the NLL is what comes back.
            out[metric] = mean([(-v, c) for c, both in model.grafts.items() for v in both[k]])
            if name == "original" or (model.numbers and not model.grafts):
                out[metric] = Estimate(None, note="nothing to put back: it is the original")
        lacking = Estimate(None, note="no concept has tokens of its own to look for")
        out["anew_score"] = mean_interval([*model.anew.values()], seed=seen.seed) if model.anew else lacking
        return out | self._behaviour(seen, name, traces)

    def _behaviour(self, seen: Observations, name: str, traces: Sequence[Trace]) -> dict[str, Estimate]:
        """How alike a model's answers are to the original's; an empty answer says nothing and is left out."""
        out = {}
        for which, about in enumerate(("target", "unrelated")):
            # The unrelated questions of a request are the same for every concept.
            asked = traces if which == 0 or self.config.concepts else traces[:1]
            answers = [
                pair
                for trace in asked
                for pair in zip(
                    trace.concept.answers[name][which], trace.concept.answers["original"][which], strict=True
                )
            ]
            told = [(mine, gold) for mine, gold in answers if not is_empty(mine) and not is_empty(gold)]
            empty = len(answers) - len(told)
            note = f"{empty} empty answers left out" if empty else "there are no answers to compare"
            parity = self.config.parity
            rouge = [distinct_rouge_l(*pair) if parity else rouge_l(*pair).f1 for pair in told]
            bleu = [sentence_bleu(*pair, parity=parity) for pair in told]
            for metric, values in ((f"rouge_{about}", rouge), (f"bleu_{about}", bleu)):
                out[metric] = mean_interval(values, seed=seen.seed) if values else Estimate(None, note=note)
        return out


def _evidence(seen: Observations, measured: Mapping[str, OpenModel]) -> list[Evidence]:
    """Return what the verdict may test: per concept, the mean over its vectors of the top tokens that are kept."""
    if not seen.oracles or any(model.other for model in measured.values()):
        return []
    kept = {
        name: {concept: float(np.mean(found)) for concept, found in measured[name].numbers.get("jaccard", {}).items()}
        for name in seen.models
    }
    return [Evidence("trace_jaccard", "forget", kept)] if len(kept["original"]) >= LEAST_TRACES else []
