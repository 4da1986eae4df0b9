"""One corrupted training set of the corrective benchmark: the damaged model, and each method at each known share.

Settings of a method are chosen among candidates without a look at the affected domain, by the mean of two numbers that
whoever corrects a model has: the accuracy on what is not identified, as labelled, and the share of the identified
examples on which the model no longer gives the wrong label.

Source: Goel et al. 2024, Corrective Machine Unlearning (arXiv:2402.14015), sections 4 and 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from expunge.audits.classification.corrected_accuracy import attack_success, corrected
from expunge.data import corruptions, known_sets, scenarios
from expunge.errors import BadInput
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.runs.folder import RunFolder
from expunge.tasks.factories import Factory
from expunge.tasks.image_inputs import ImageInputs
from expunge.tasks.predictor import Predictor

Corruption = Literal["poison", "confusion"]
ORIGINAL = "original"


@dataclass(frozen=True)
class Domain:
    """A set of images and what is done to it.

    Attributes:
        sizes: height, width and channels of an image.
        train, test: how many images at most; None is all.
        poisoned, confused: how many of so many training images are corrupted.
        patch: edge of the poison's patch in pixels.
        target: label that poisoned images are given.
        confuse: the two classes whose labels are swapped.
    """

    sizes: tuple[int, int, int]
    train: int
    test: int | None
    poisoned: int
    confused: int
    patch: int
    target: str
    confuse: tuple[str, str]


DOMAINS: Mapping[str, Domain] = {
    "mnist10k": Domain((28, 28, 1), 4000, 1000, 200, 300, 3, "0", ("3", "5")),
    "cifar10": Domain((32, 32, 3), 4000, 1000, 200, 400, 3, "airplane", ("cat", "dog")),
    "digits": Domain((8, 8, 1), 1200, None, 60, 100, 2, "0", ("3", "5")),
}
TRAINING: Mapping[str, Any] = {"epochs": 15, "batch_size": 64, "learning_rate": 1e-3}
HIDDEN = (256, 256)
_FORGETTING = {"batch_size": 64, "warmup": 0.0, "schedule": "constant"}
# Method -> candidates. Retraining has the settings of the original; the others are given a fraction of its time.
CANDIDATES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "retrain": [TRAINING],
    "finetune": [{**TRAINING, "epochs": 5}],
    "cf_k": [{**TRAINING, "epochs": 5}],
    "eu_k": [TRAINING],
    "scrub": [{"passes": 5, "batch_size": 64, "learning_rate": rate} for rate in (1e-4, 5e-4)],
    "bad_teacher": [{**_FORGETTING, "epochs": 1000, "max_steps": 150, "learning_rate": rate} for rate in (1e-4, 5e-4)],
    "ssd": [{"alpha": alpha, "strength": strength} for alpha in (1.0, 3.0, 10.0) for strength in (0.1, 1.0)],
}


@dataclass(frozen=True)
class Setting:
    """What to run: a set of images, a corruption and a seed.

    Attributes:
        name: of ``DOMAINS``.
        data: folder of the published files, or None for ``$EXPUNGE_DATA``.
        corruption: what is done to it.
        seed: of the corruption, the draw of the identified examples and all training.
        train: training images at most; by default as the domain says.
        training: of the original and of retraining.
        hidden: widths of the network's hidden layers.
    """

    name: str
    data: str | None
    corruption: Corruption
    seed: int
    train: int | None = None
    training: tuple[tuple[str, Any], ...] = tuple(TRAINING.items())
    hidden: tuple[int, ...] = HIDDEN


@dataclass(frozen=True, eq=False)
class Case:
    """A corrupted training set, what measures the damage, and a fresh network for it."""

    setting: Setting
    train: Dataset
    test: Dataset
    triggered: Dataset | None
    start: Predictor


@lru_cache(maxsize=2)
def _clean(name: str, data: str | None, limit: int | None) -> tuple[Dataset, Dataset]:
    if name == "digits":
        train, test = known_sets.digits("train"), known_sets.digits("test")
    else:
        read: Any = getattr(known_sets, name)
        train, test = read("train", data), _spread(read("test", data), DOMAINS[name].test)
    return _spread(train, limit), test


def _spread(examples: Dataset, count: int | None) -> Dataset:
    """Take so many examples from all over a set: in some files one class follows the other."""
    if count is None or count >= len(examples):
        return examples
    return examples.select(np.linspace(0, len(examples) - 1, count).round().astype(int).tolist())


def make_case(setting: Setting) -> Case:
    """Read a set of images and corrupt it.

    Raises:
        BadInput: the files are not there.
    """
    domain = DOMAINS[setting.name]
    train, test = _clean(setting.name, setting.data, setting.train or domain.train)
    share = len(train) / domain.train  # of fewer images as large a part is corrupted
    if setting.corruption == "poison":
        count = max(10, round(share * domain.poisoned))
        bad = corruptions.patch_poison(train, count, domain.target, setting.seed, domain.patch)
        triggered = corruptions.triggered(test, domain.patch)
    else:
        count = max(10, round(share * domain.confused))
        bad, triggered = corruptions.confuse_classes(train, *domain.confuse, count, setting.seed), None
    names = sorted(set(map(str, train["label"])))
    height, width, channels = domain.sizes
    sizes = {"inputs": height * width * channels, "outputs": len(names), "hidden": list(setting.hidden)}
    factory = Factory("expunge.tasks.mlp:mlp", sizes)
    inputs = ImageInputs.of({"channels": channels})
    start = Predictor.of_images(factory.make(setting.seed), names, factory=factory, inputs=inputs)
    return Case(setting, bad, test, triggered, start)


def train_original(case: Case) -> Predictor:
    """Train on everything, corrupted examples included."""
    everything = DeletionRequest(case.test, case.train)  # what it is asked to forget it never saw
    return _trained(case.start, everything, "retrain", {**dict(case.setting.training), "seed": case.setting.seed})


def measure_damage(case: Case, model: Predictor) -> dict[str, float]:
    """Return Acc_corr, Acc_retain and for a poison the success of the attack, in percent."""
    domain, clean = DOMAINS[case.setting.name], model.observe(model.encode(case.test))
    assert clean.classes
    if case.triggered is not None:
        shown, target = model.observe(model.encode(case.triggered)), clean.classes.index(domain.target)
        return {
            "acc_corr": corrected(shown, target),
            "acc_retain": corrected(clean),
            "attack_success": attack_success(shown, target),
        }
    inside = np.isin(clean.targets, [clean.classes.index(name) for name in domain.confuse])
    return {
        "acc_corr": corrected(clean.take(np.flatnonzero(inside))),
        "acc_retain": corrected(clean.take(np.flatnonzero(~inside))),
    }


def choose(
    original: Predictor, request: DeletionRequest, method: str, candidates: Sequence[Mapping[str, Any]], seed: int
) -> tuple[Predictor, Mapping[str, Any], float]:
    """Run a method with each of its candidates and keep the one that looks best without the affected domain.

    Candidates that the method refuses for this request (an SSD alpha that nothing can exceed) are passed over.

    Returns:
        The model, its settings, and the seconds that this run of it took.

    Raises:
        BadInput: every candidate is refused.
    """
    best: tuple[float, Predictor, Mapping[str, Any], float] | None = None
    refused: BadInput | None = None
    for settings in candidates:
        try:
            outcome = unlearn(original, request, method, settings={**settings, "seed": seed})
        except BadInput as error:
            refused = error
            continue
        assert isinstance(outcome.model, Predictor)
        assert request.retain is not None
        kept, known = (outcome.model.observe(outcome.model.encode(part)) for part in (request.retain, request.forget))
        score = float(kept.correct.mean() + 1 - known.correct.mean()) / 2
        if best is None or score > best[0]:
            best = (score, outcome.model, settings, outcome.cost.seconds)
    if best is None:
        assert refused is not None
        raise refused
    return best[1], best[2], best[3]


def run_setting(
    setting: Setting,
    fractions: Sequence[float],
    methods: Mapping[str, Sequence[Mapping[str, Any]]],
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """Run every method at every known share of one corrupted training set.

    Args:
        setting: which.
        fractions: known shares of the corrupted examples, in (0, 1].
        methods: method -> candidates.
        folder: keeps each number as it is measured; a run that was stopped goes on from there.

    Returns:
        One record for the original, and one per method and share.
    """
    import torch

    torch.set_num_threads(1)
    wanted: list[tuple[str, float, Sequence[Mapping[str, Any]]]] = [(ORIGINAL, 0.0, [])]
    wanted += [(method, share, candidates) for share in fractions for method, candidates in methods.items()]
    found: dict[tuple[str, float], dict[str, Any]] = {}
    files = {}
    for method, share, candidates in wanted:
        what = {"method": method, "share": share, "candidates": [dict(candidate) for candidate in candidates]}
        key = example_id({**asdict(setting), **what})
        file = files[method, share] = None if folder is None else folder / f"{method}-{key}.json"
        if file is not None and file.is_file():
            found[method, share] = json.loads(file.read_text(encoding="utf-8"))
    if len(found) < len(wanted):
        case = make_case(setting)
        original = train_original(case)
        for method, share, candidates in wanted:
            if (method, share) in found:
                continue
            record: dict[str, Any] = {"method": method, "share": share, "seed": setting.seed,
                                      "corruption": setting.corruption}  # fmt: skip
            model = original
            if method != ORIGINAL:
                request = scenarios.corrupted(case.train, share, setting.seed, unseen=case.test)
                model, chosen, seconds = choose(original, request, method, candidates, setting.seed)
                record |= {"known": len(request.forget), "settings": dict(chosen), "seconds": seconds}
            found[method, share] = record | measure_damage(case, model)
            if (file := files[method, share]) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                RunFolder(file.parent).write_json(file.name, found[method, share])
    return [found[method, share] for method, share, _ in wanted]


def _trained(start: Predictor, request: DeletionRequest, method: str, settings: Mapping[str, Any]) -> Predictor:
    model = unlearn(start, request, method, settings=settings).model
    assert isinstance(model, Predictor)
    return model
