"""Who's Harry Potter: the forgotten text is no longer completed, the rest stays, and where the method finds nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from datasets import Dataset

from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.world import SIZES, WorldSettings, small_world
from expunge.tasks.causal_lm import CausalLM
from expunge.training.probe import measure

ALPHAS = (1, 2, 5)
# The paper's numbers are for 7B models; these bring small models as far. Reinforcement is the same for every alpha.
SETTINGS = {
    "anchors": "none", "reinforce_epochs": 20, "reinforce_learning_rate": 2e-4,
    "epochs": 40, "learning_rate": 1e-4, "batch_size": 32, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0,
}  # fmt: skip


class WHPReproduction(Reproduction):
    """Generic labels on small language models that know fictitious people by heart, with forget data alone.

    The completion of a question is familiar if the greedy answer says the value that was asked for; it is measured on
    the people to be forgotten and on an eighth of the questions about the others, before and after. The names of the
    world are made up, so there are no anchors. Run with several alphas on a model that has saturated on its text, and
    once, for the labels alone, on a model that was trained for half as long.
    """

    id = "whp"
    title = "completion of the forgotten text and of the rest, over alpha, and on a saturated model"
    paper = "Eldan and Russinovich 2023, Who's Harry Potter? Approximate Unlearning in LLMs, arXiv:2310.02238"
    claim = "Fine-tuning on generic labels takes away the completion of the forgotten text and leaves the rest as it is"

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        world = small_world(bench, seed, oracles=0)
        assert world.request.retain is not None
        sets = {"forgotten": world.request.forget, "others": _every(world.request.retain, 2 if bench.quick else 8)}
        found = numbers(world.original, sets, "before")
        for alpha in ALPHAS:
            bench.progress.stage(f"forgetting with alpha {alpha}")
            outcome = unlearn(
                world.original, world.request, "whp", settings={**SETTINGS, "alpha": alpha, "seed": seed},
                progress=bench.progress.step,
            )  # fmt: skip
            assert isinstance(outcome.model, CausalLM)
            found[f"labels_changed_alpha_{alpha}"] = outcome.config["labels"]["changed"]
            found |= numbers(outcome.model, sets, f"after_alpha_{alpha}")
        half = small_world(bench, seed, half_trained(bench.quick), oracles=0)
        found["familiar_forgotten_half_trained"] = familiarity(half.original, sets["forgotten"])
        labels = unlearn(
            half.original, half.request, "whp", settings={**SETTINGS, "alpha": 1, "epochs": 1, "seed": seed}
        ).config["labels"]
        return {**found, "labels_changed_alpha_1_half_trained": labels["changed"]}

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        most = ALPHAS[-1]
        gone = [mean(runs, f"familiar_forgotten_{when}") for when in ("before", f"after_alpha_{most}")]
        kept = [mean(runs, f"familiar_others_{when}") for when in ("before", f"after_alpha_{most}")]
        rise = {
            who: mean(runs, f"nll_{who}_after_alpha_{most}") - mean(runs, f"nll_{who}_before")
            for who in ("forgotten", "others")
        }
        changed = [mean(runs, f"labels_changed_alpha_{alpha}") for alpha in ALPHAS]
        saturated = mean(runs, "familiar_forgotten_after_alpha_1")
        half = mean(runs, "labels_changed_alpha_1_half_trained")
        return [
            Check(
                "the forgotten text is no longer completed",
                gone[0] >= 0.8 and gone[1] <= 0.25,
                f"{gone[0]:.0%} of the questions about the forgotten are completed before, {gone[1]:.0%} after "
                f"(alpha {most})",
            ),
            Check(
                "the rest is completed as before, nearly",
                kept[0] - kept[1] <= 0.1,
                f"{kept[0]:.0%} before, {kept[1]:.0%} after; a small model shares its weights among few texts, and "
                "nothing of what is to be kept is trained on",
            ),
            Check(
                "far more of the rest is completed than of the forgotten",
                kept[1] - gone[1] >= 0.5,
                f"{kept[1]:.0%} against {gone[1]:.0%}",
            ),
            Check(
                "the loss on the rest rises by less than a tenth of what it rises by on the forgotten",
                rise["forgotten"] > 0 and rise["others"] < 0.1 * rise["forgotten"],
                f"by {rise['others']:.2f} nats per token against {rise['forgotten']:.2f}",
            ),
            Check(
                "a larger alpha changes more labels",
                all(min(_steps(runs, a, b)) > 0 for a, b in pairwise(ALPHAS)),
                ", ".join(f"{share:.0%} (alpha {alpha})" for share, alpha in zip(changed, ALPHAS, strict=True)),
            ),
            Check(
                "the trap: where the text is known by heart, alpha 1 changes next to no label and forgets nothing",
                changed[0] < 0.1 and saturated > 0.8 * gone[0] and half > 2 * changed[0],
                f"{changed[0]:.0%} of the labels, {saturated:.0%} still completed; on a model trained half as long "
                f"alpha 1 changes {half:.0%}",
            ),
        ]


def half_trained(quick: bool) -> WorldSettings:
    """Return the same world with a model that was trained for half as long."""
    size = SIZES["tiny" if quick else "small"]
    training = {**size.training, "epochs": size.training["epochs"] // 2}
    return WorldSettings(**{**size.model_dump(), "training": training})


def numbers(model: CausalLM, sets: Mapping[str, Dataset], when: str) -> dict[str, float]:
    """Return how familiar each set is, and its mean answer NLL in nats per token."""
    losses = measure(model, {name: model.encode(examples) for name, examples in sets.items()})
    found = {f"familiar_{name}_{when}": familiarity(model, examples) for name, examples in sets.items()}
    return found | {f"nll_{name}_{when}": loss for name, (loss, _) in losses.items()}


def familiarity(model: CausalLM, questions: Dataset) -> float:
    """Share of the questions whose greedy answer says the value that was asked for."""
    said = model.generate(questions["prompt"], [32] * len(questions))
    return sum(value in text for value, text in zip(questions["value"], said, strict=True)) / len(said)


def _every(examples: Dataset, step: int) -> Dataset:
    return examples.select(range(0, len(examples), step))


def _steps(runs: Sequence[Mapping[str, float]], one: int, other: int) -> list[float]:
    more, less = (column(runs, f"labels_changed_alpha_{alpha}") for alpha in (other, one))
    return [a - b for a, b in zip(more, less, strict=True)]
