"""What the concept-vector audit reports: its numbers in words, its tables and its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.audits.base import Plot, Scalar, Table
from expunge.audits.concept_traces import OpenModel, Trace

SCALARS = [
    Scalar("located", "Concepts with a localised trace in the original", "share"),
    Scalar("jaccard", "Top tokens kept at the trace (Jaccard)", "share", "high"),
    Scalar("jaccard_same_head", "The same, read with the original's head", "share", "high"),
    Scalar("cosine", "Cosine with the original at the trace", "cosine", "high"),
    Scalar("l2", "Distance from the original at the trace", "of the vector's length", "low"),
    Scalar("matched_cosine", "Best match of a trace vector in its layer", "cosine", "high"),
    Scalar("random_jaccard", "Top tokens kept elsewhere in the layer (Jaccard)", "share"),
    Scalar("random_cosine", "Cosine with the original elsewhere in the layer", "cosine"),
    Scalar("damage_target", "What damage to the trace costs on its questions", "nats/token", "high"),
    Scalar("damage_unrelated", "What it costs on other questions", "nats/token"),
    Scalar("graft_target", "What putting the original's trace back gives", "nats/token"),
    Scalar("graft_random", "What its vectors elsewhere give", "nats/token"),
    Scalar("anew_score", "Clearest vector for the concept anywhere in the model", "standard errors", "high", 1),
    Scalar("rouge_target", "Answers like the original's, concept", "ROUGE-L F1", "high"),
    Scalar("rouge_unrelated", "Answers like the original's, other questions", "ROUGE-L F1"),
    Scalar("bleu_target", "Answers like the original's, concept", "BLEU", "high"),
    Scalar("bleu_unrelated", "Answers like the original's, other questions", "BLEU"),
]


def damage_plots(models: Mapping[str, OpenModel], strengths: Sequence[float]) -> list[Plot]:
    """Draw what damage to the traces does in each model, on their questions and on others."""

    def curve(model: OpenModel, which: int) -> list[tuple[float, float]]:
        return [
            (c, float(np.mean([v for rises in model.damage.values() for v in rises[c][which]])))
            for c in (0.0, *strengths)
        ]

    return [
        Plot(
            "curve",
            f"What damage to the trace costs on {words}",
            "noise over length of the vector",
            "rise of the NLL, nats per token",
            {name: curve(model, which) for name, model in models.items() if model.damage},
        )
        for which, words in enumerate(("the concept's questions", "other questions"))
    ]


def overview_table(traces: Sequence[Trace]) -> Table:
    """List where the original keeps each concept, with the nulls of the search and of the damage."""
    rows = []
    for t in traces:
        searched = ("", "")
        if t.located is not None:
            searched = (f"{t.located.best_score:.1f}", f"{t.located.null_best:.1f}")
        damage = ("", "", "")
        if t.p is not None:
            damage = (f"{np.mean(t.target):.3f}", f"{np.mean(t.unrelated):.3f}", f"{t.p:.2f}")
        rows.append(
            (
                t.concept.name,
                len(t.tokens),
                len(t.candidates),
                *searched,
                *damage,
                t.why or (t.remark and f"places given; {t.remark}") or "trace found",
            )
        )
    columns = (
        "concept", "tokens of its own", "vectors", "clearest vector", "clearest random one", "damage: its questions",
        "damage: others", "p", "result",
    )  # fmt: skip
    return Table("Where the original keeps each concept", columns, rows)


def vector_table(trace: Trace, original: OpenModel, unlearned: OpenModel) -> Table:
    """List the vectors of a concept: what they say before and now."""
    name, rows = trace.concept.name, []
    for i, candidate in enumerate(trace.candidates):
        now: tuple[str, ...] = (unlearned.other, "", "", "")
        if not unlearned.other:
            numbers = (f"{unlearned.numbers[metric][name][i]:.3f}" for metric in ("jaccard", "cosine", "l2"))
            now = (unlearned.says[name][i], *numbers)
        place = f"{candidate.place}{', negated' if candidate.sign < 0 else ''}"
        rows.append((place, f"{trace.alone[i]:.3f}", original.says[name][i], *now))
    columns = ("vector", "damage alone", "says in the original", "says now", "Jaccard", "cosine", "L2 / length")
    return Table(f"The vectors of {name}", columns, rows)


def missing_note(traces: Sequence[Trace]) -> str:
    """Say which concepts have no trace, and that this is no sign of removal."""
    missing = [t for t in traces if t.why]
    if not missing:
        return ""
    reasons = list(dict.fromkeys(t.why for t in missing))
    searched = next(((t.concept.name, t.located) for t in missing if t.located is not None), None)
    if searched:
        name, found = searched
        null = f"the clearest vector scores {found.best_score:.1f}, the clearest random one {found.null_best:.1f}"
        reasons.append(f"for {name} {null}")
    return (
        f"{len(missing)} of {len(traces)} concepts have no localised trace in the original model: that is no sign of "
        f"removal, only the limit of this audit ({'; '.join(reasons)})"
    )
