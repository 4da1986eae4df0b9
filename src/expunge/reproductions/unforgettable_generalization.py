"""Unforgettable Generalization: do random labels reach new questions, and is the skill still inside?"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge.data.tokenizer import small_tokenizer
from expunge.methods.general.random_label import draw_label, label_options
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.matched import compare
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, train_small_llama
from expunge.training.settings import TrainSettings

# Share of wrong labels in what is taught: how sure the model can become of each skill. More is taught where more of
# it is wrong, so that all three are learnt.
NOISE: Mapping[str, float] = {"sure": 0.0, "fair": 0.1, "unsure": 0.2}
TAUGHT: Mapping[str, int] = {"sure": 10_000, "fair": 12_000, "unsure": 24_000}
_ENDS = ("dan", "pel", "sor", "wig", "fen", "tum", "lar", "nok", "bez", "hul", "jit", "qua", "ras", "vim", "xol", "zed")
WORDS = tuple(start + end for start in ("ka", "lo", "mi", "ru", "te", "vo") for end in _ENDS)
LENGTH = 5
OPTIONS = ("no", "yes")
LABEL_SEED = 0
FITTED = 0.97

Numbers = NDArray[np.float64]


class UnforgettableGeneralization(Reproduction):
    """Three skills of one small language model, forgotten one at a time with random labels.

    A skill is a hidden rule: each of 96 words counts for or against, and the answer to five words is the majority. The
    skills have rules of their own and are taught with more or fewer wrong labels, so that the model is more or less
    sure of them. Each is then forgotten on 200 questions with random labels, as many epochs as it takes to learn 97 %
    of these labels, and asked on new questions: 0 % of its advantage over chance lost is a forget ratio of 0, all of it
    1. A linear probe, chosen among all blocks on questions of its own, is fitted to the true answers before and after
    forgetting and on a model with random weights; on 400 questions, too few to learn what 96 words count for, so that
    what it reads must have been there.
    """

    id = "unforgettable_generalization"
    title = "random-label forgetting of skills: does it reach new questions, and what do probes still read"
    paper = "Zhang et al. 2024, Unforgettable Generalization in Language Models, arXiv:2409.02228"
    claim = (
        "Random labels bring the forgotten questions to chance, but reach new questions of the task less, the surer "
        "the model was; and linear probes still read the answers"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        skills = {name: Skill.drawn(name, seed, noise) for name, noise in NOISE.items()}
        model = learnt(skills, seed, bench)
        tests = {name: skill.questions(200 if bench.quick else 500, "test") for name, skill in skills.items()}
        probes = {name: skill.questions(200 if bench.quick else 500, "probe") for name, skill in skills.items()}
        blank = model.fresh(seed + 77)
        found: dict[str, float] = {}
        for name, skill in skills.items():
            bench.progress.stage(f"forgetting the skill '{name}'")
            before = answer_probabilities(model, tests[name])
            found[f"confidence_{name}"] = float(before.max(axis=1).mean())
            found[f"spread_{name}"] = spread(model, tests[name])
            found[f"accuracy_before_{name}"] = accuracy(before, tests[name])
            forget = skill.questions(100 if bench.quick else 200, "forget")
            after, fitted, epochs = forgotten(model, forget, seed, bench)
            found[f"fitted_{name}"], found[f"epochs_{name}"] = fitted, epochs
            found[f"accuracy_on_forgotten_{name}"] = accuracy(answer_probabilities(after, forget), forget)
            for other, test in tests.items():
                found[f"accuracy_on_{other}_after_forgetting_{name}"] = accuracy(
                    answer_probabilities(after, test), test
                )
            head = found[f"accuracy_on_{name}_after_forgetting_{name}"]
            gained = found[f"accuracy_before_{name}"] - 0.5
            if gained > 0:
                found[f"forget_ratio_{name}"] = (found[f"accuracy_before_{name}"] - head) / gained
            for label, probed in {"before": model, "after": after, "random_weights": blank}.items():
                found[f"probe_{label}_{name}"] = probe_accuracy(probed, probes[name], tests[name])
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        names = list(NOISE)
        fitted = min(min(column(runs, f"fitted_{n}")) for n in names)
        onset = [mean(runs, f"accuracy_on_forgotten_{n}") for n in names]
        reach = {n: mean(runs, f"forget_ratio_{n}") for n in names}
        head = {n: mean(runs, f"accuracy_on_{n}_after_forgetting_{n}") for n in names}
        spared = {
            n: sum(mean(runs, f"accuracy_on_{o}_after_forgetting_{n}") for o in names if o != n) / (len(names) - 1)
            for n in names
        }
        after, blank, before = (
            {n: mean(runs, f"probe_{when}_{n}") for n in names} for when in ("after", "random_weights", "before")
        )
        return [
            Check(
                "the random labels are learnt and bring the forgotten questions to chance",
                fitted >= FITTED and all(abs(a - 0.5) < 0.1 for a in onset),
                f"at least {fitted:.0%} of the random labels learnt; accuracy on the forgotten questions "
                f"{_by_skill(dict(zip(names, onset, strict=True)))}",
            ),
            Check(
                "the skill the model is surest of is forgotten on new questions in part only",
                reach[names[0]] < 0.9,
                f"forget ratio on new questions {_by_skill(reach)}",
            ),
            compare(
                "forgetting reaches new questions more where the model was less sure", runs,
                f"forget_ratio_{names[-1]}", f"forget_ratio_{names[0]}",
            ),
            Check(
                "a skill that is not asked to be forgotten keeps more than the one that is",
                all(spared[n] > head[n] for n in names),
                f"accuracy on new questions of the other two skills {_by_skill(spared)}, named by the skill forgotten; "
                "below 0.5 their answers are turned round",
            ),
            Check(
                "a linear probe reads answers that the model no longer gives",
                all(after[n] - head[n] >= 0.1 for n in names),
                f"probe {_by_skill(after)} against {_by_skill(head)} of the model's own answers on new questions; "
                f"before forgetting the probe had {_by_skill(before)}",
            ),
            Check(
                "what it reads was learnt: a probe on random weights reads less",
                all(after[n] - blank[n] >= 0.05 for n in names),
                f"probe after forgetting {_by_skill(after)}, on random weights {_by_skill(blank)}",
            ),
        ]  # fmt: skip


# ---- skills ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skill:
    """A hidden rule over words.

    Attributes:
        name: stands before every question.
        seed: of its questions.
        noise: share of wrong answers in what is taught.
        signs: +1 or -1 per word, half each; five words are answered with "yes" if their signs add up to more than 0.
    """

    name: str
    seed: int
    noise: float
    signs: Mapping[str, int]

    @classmethod
    def drawn(cls, name: str, seed: int, noise: float) -> Skill:
        """Draw the rule."""
        signs = [1, -1] * (len(WORDS) // 2)
        random.Random(f"{name} {seed}").shuffle(signs)
        return cls(name, seed, noise, dict(zip(WORDS, signs, strict=True)))

    def questions(self, count: int, purpose: str, noise: float = 0.0) -> Dataset:
        """Draw different questions with their answers and options; another purpose draws others.

        That a question is drawn for two purposes is rare: there are 96 ** 5 of them.
        """
        dice = random.Random(f"{self.name} {self.seed} {purpose}")
        rows: dict[str, str] = {}
        while len(rows) < count:
            words = dice.choices(WORDS, k=LENGTH)
            answer = sum(self.signs[word] for word in words) > 0
            rows[f"{self.name}: {' '.join(words)}"] = OPTIONS[answer != (dice.random() < noise)]
        return Dataset.from_list(
            [
                {"id": example_id({"prompt": p, "answer": a}), "prompt": p, "answer": a, "options": list(OPTIONS)}
                for p, a in rows.items()
            ]
        )


def learnt(skills: Mapping[str, Skill], seed: int, bench: Workbench) -> CausalLM:
    """Train the model that has all skills, or find it."""
    if (bench.folder / "model").is_dir():
        return CausalLM.load(bench.folder / "model")
    taught = [
        skill.questions(TAUGHT[name] // (8 if bench.quick else 1), "teach", skill.noise)
        for name, skill in skills.items()
    ]
    texts = [f"{row['prompt']} {row['answer']}" for examples in taught for row in examples]
    settings = TrainSettings(epochs=4, batch_size=128, learning_rate=3e-3, warmup=0.1, schedule="cosine", seed=seed)
    bench.progress.stage("teaching three skills")
    shape = Shape(hidden=64, layers=3, heads=4, context=32)
    model, _ = train_small_llama(taught, small_tokenizer(texts, 900), shape, settings, progress=bench.progress.step)
    model.save(bench.folder / "model")
    return model


def forgotten(model: CausalLM, forget: Dataset, seed: int, bench: Workbench) -> tuple[CausalLM, float, float]:
    """Forget with random labels for as few epochs as it takes to learn them.

    Returns:
        The model, the share of the random labels that it has learnt, and the epochs.
    """
    labels = [
        options[draw_label(row["id"], len(options), LABEL_SEED)]
        for row, options in zip(forget, label_options(forget), strict=True)
    ]
    epochs = 25
    while True:
        after = unlearn(
            model, DeletionRequest(forget), "random_label",
            settings={
                "epochs": epochs, "batch_size": 32, "learning_rate": 1e-4, "warmup": 0.0, "schedule": "constant",
                "weight_decay": 0.0, "seed": seed, "label_seed": LABEL_SEED,
            },
            progress=bench.progress.step,
        ).model  # fmt: skip
        assert isinstance(after, CausalLM)
        fitted = accuracy(answer_probabilities(after, forget), forget, labels)
        if fitted >= FITTED or epochs >= 200:
            return after, fitted, epochs
        epochs *= 2


# ---- what is measured ------------------------------------------------------------------------------------------------


def answer_probabilities(model: CausalLM, questions: Dataset) -> Numbers:
    """Return (n, 2) probabilities of the options, normalised over them."""
    scores = model.score([(row["prompt"], option) for row in questions for option in OPTIONS])
    logs = np.array([float(s.log_prob[s.content].sum()) for s in scores]).reshape(-1, len(OPTIONS))
    shifted = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def accuracy(probabilities: Numbers, questions: Dataset, labels: Sequence[str] | None = None) -> float:
    """Share of the questions whose most probable option is the label; the true answers unless others are given."""
    truth = np.array([OPTIONS.index(label) for label in labels or questions["answer"]])
    return float((probabilities.argmax(axis=1) == truth).mean())


def features(model: CausalLM, questions: Dataset) -> dict[int, Numbers]:
    """Return per block the (n, H) states from which the answer's first token is predicted."""
    layers = range(model.model.config.num_hidden_layers)
    encoded = model.encode(questions)
    parts: dict[int, list[Numbers]] = {layer: [] for layer in layers}
    with model.asked():
        for start in range(0, len(encoded), 256):
            batch = encoded.take(range(start, min(start + 256, len(encoded))))
            first = np.cumsum([0, *(batch.labelled(i) for i in range(len(batch) - 1))])
            for layer, rows in model.hidden_states(batch, layers).items():
                parts[layer].append(rows[torch.as_tensor(first)].double().cpu().numpy())
    return {layer: np.concatenate(rows) for layer, rows in parts.items()}


def spread(model: CausalLM, questions: Dataset) -> float:
    """Return the total variance over questions of the last block's state: the trace of its covariance."""
    states = features(model, questions)
    return float(states[max(states)].var(axis=0).sum())


def probe_accuracy(model: CausalLM, known: Dataset, tests: Dataset) -> float:
    """Return how well a linear probe of the best block reads the true answers of new questions.

    Args:
        model: is left as it is.
        known: four fifths of them fit the probes, a fifth chooses the block.
        tests: the new questions.
    """
    states, new = features(model, known), features(model, tests)
    truth, cut = np.array(known["answer"]), len(known) * 4 // 5
    fitted = {
        layer: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows[:cut], truth[:cut])
        for layer, rows in states.items()
    }
    best = max(fitted, key=lambda layer: float(fitted[layer].score(states[layer][cut:], truth[cut:])))
    return float(fitted[best].score(new[best], np.array(tests["answer"])))


def _by_skill(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.2f} ({name})" for name, value in numbers.items())
