"""Concept poisoning: is it the concept that forgets, and what is left, in images and in texts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Array3D, Dataset, Features, Value
from datasets import Sequence as ListOf
from numpy.typing import NDArray

from expunge.data import known_sets
from expunge.data.scenarios import whole_class
from expunge.methods.general.concept_images import Infection, infer_concepts, peaks
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.classifier_world import RECIPE, ClassifierWorld, cifar_world
from expunge.reproductions.world import small_world
from expunge.requests.request import example_id
from expunge.tasks.attribution import asked_for_gradients
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor

ARMS: Mapping[str, Mapping[str, Any]] = {
    "concept": {},
    "concept_random": {"labels": "random"},
    "concept_gradients": {"localise": "gradients", "steps": 8},
    "concept_kept": {"labels": "keep"},
    "relabelled": {"patch": "none"},
    "whole_donor": {"patch": "full"},
}
# The head is small and its features are not those of a large network: ten times the paper's learning rate.
HEAD: Mapping[str, Any] = {"learning_rate": 1e-2, "epochs": 10}
TEXTS: Mapping[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3, "epochs": 8, "batch_size": 16}

_DRAWN = {
    "plus": ("..#..", "..#..", "#####", "..#..", "..#.."),
    "cross": ("#...#", ".#.#.", "..#..", ".#.#.", "#...#"),
    "box": ("#####", "#...#", "#...#", "#...#", "#####"),
    "tee": ("#####", "..#..", "..#..", "..#..", "..#.."),
    "bar": (".....", ".....", "#####", ".....", "....."),
    "dots": ("#.#.#", ".....", "#.#.#", ".....", "#.#.#"),
}
GLYPHS = {name: np.array([[c == "#" for c in row] for row in rows], dtype=np.float32) for name, rows in _DRAWN.items()}
# Each of the first four means its own class; the last two are put into images of all classes at random.
CLASSES = tuple(GLYPHS)[:4]
SIZE, EDGE = 16, 5


class ConceptPoisoningReproduction(Reproduction):
    """A class is forgotten by its concept, and by relabelling alone; people are forgotten by their words.

    Glyphs: images of 16 x 16 noisy pixels, each class with a texture and with a glyph of its own somewhere, and other
    glyphs in images of all classes; the glyphs are the marked concepts. Pictures: cats among the ten classes of a part
    of CIFAR-10, concepts are clusters of windows. On both a small convolutional network, whose head alone trains, and
    every variant: patches where the concept is by windows or by integrated gradients, random labels, labels kept, the
    whole donor, and no patch at all. Whether the class is still in the features is asked of a logistic regression on
    them, fitted to all classes, beside a network retrained without the class. Texts: people of a small fictitious
    world, whose strongest words by integrated gradients are masked, or whole answers replaced.
    """

    id = "concept_poisoning"
    title = "forgetting a class or people by overwriting their concepts, beside relabelling alone"
    paper = (
        "Chang et al. 2024, Class Machine Unlearning for Complex Data via Concepts Inference and Data Poisoning, "
        "arXiv:2405.15662"
    )
    claim = (
        "The concept of a class can be inferred, and poisoning it with another class's erases the class and keeps the "
        "rest; masking the words that carry an entity makes a language model forget it"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        world = glyph_world(seed, 60 if bench.quick else 200, 5 if bench.quick else 12)
        marked = {"concepts_column": "marks", "window": EDGE / SIZE, "stride": 1 / SIZE, **HEAD}
        bench.progress.stage("glyphs")
        assert world.request.holdout is not None
        found = variants("glyphs", world, world.request.holdout, marked)
        found |= located(world)
        if not bench.quick:
            bench.progress.stage("pictures")
            pictures = cifar_world(seed, "class", bench.data, folder=bench.shared)
            every = known_sets.cifar10("test", bench.data)
            cats = every.select([i for i, name in enumerate(every["label"]) if name == "cat"])
            found |= variants("pictures", pictures, cats, {"stride": 1 / 7, **HEAD})
        bench.progress.stage("texts")
        return found | texts(seed, bench)

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        checks = []
        for place in ("glyphs", "pictures"):
            if f"{place}_concept_unseen" in runs[0]:
                checks += _judged(place, runs)
        top, hit = column(runs, "glyphs_planted_first"), column(runs, "glyphs_covered")
        before, after = (column(runs, f"texts_{name}_said") for name in ("original", "masked"))
        kept = [run["texts_original_kept"] - run["texts_masked_kept"] for run in runs]
        return [
            *checks,
            Check(
                "the bottleneck ranks the planted concept first for the class",
                min(top) == 1,
                f"in {sum(top):.0f} of {len(top)} seeds",
            ),
            Check(
                "the window where the concept is strongest covers the glyph in most images",
                min(hit) > 0.5,
                f"covers at least half of the glyph in {_shares(hit)}, by chance in "
                f"{mean(runs, 'glyphs_covered_by_chance'):.0%}; by integrated gradients in "
                f"{_shares(column(runs, 'glyphs_covered_gradients'))}; a window blown up to the whole image "
                "is like nothing that a small network was trained on, unlike the encoder of the paper",
            ),
            Check(
                "masked words are not said any more",
                max(after) < 0.1 * min(before),
                f"answers to forget that hold their fact: {_shares(before)} before, {_shares(after)} after; with whole "
                f"answers replaced {_shares(column(runs, 'texts_replaced_said'))}, retrained "
                f"{_shares(column(runs, 'texts_oracle_said'))}; what of a fact is not among the masked "
                "words stays in the answers and is learned again",
            ),
            Check(
                "other people are known as before",
                max(kept) < 0.05,
                f"right answers about them: {_shares(column(runs, 'texts_original_kept'))} before, "
                f"{_shares(column(runs, 'texts_masked_kept'))} after",
            ),
        ]


def _judged(place: str, runs: Sequence[Mapping[str, float]]) -> list[Check]:
    def each(arm: str, what: str) -> list[float]:
        return column(runs, f"{place}_{arm}_{what}")

    lost = [a - b for a, b in zip(each("original", "others"), each("concept", "others"), strict=True)]
    gain = [a - b for a, b in zip(each("relabelled", "forget"), each("concept", "forget"), strict=True)]
    inside = [a - b for a, b in zip(each("concept", "probe"), each("retrained", "probe"), strict=True)]
    erased, kept = (
        max(*each("concept", "forget"), *each("concept", "unseen")) < 0.05,
        min(each("concept_kept", "forget")),
    )
    return [
        Check(
            f"{place}: the concept's patch and the donor's label erase the class",
            erased,
            f"accuracy on its training images {_shares(each('concept', 'forget'))}, on unseen ones "
            f"{_shares(each('concept', 'unseen'))}, before {_shares(each('original', 'unseen'))}; random labels: "
            f"{_shares(each('concept_random', 'unseen'))}",
        ),
        Check(
            f"{place}: the other classes lose less than two points",
            max(lost) < 0.02,
            f"accuracy on unseen images of them {_shares(each('original', 'others'))} before, "
            f"{_shares(each('concept', 'others'))} after, retrained {_shares(each('retrained', 'others'))}",
        ),
        Check(
            f"{place}: it takes the labels: with the patch and its own label the class is still known",
            kept > 0.5,
            f"accuracy on its training images {_shares(each('concept_kept', 'forget'))}",
        ),
        Check(
            f"{place}: the concept matters: relabelling without a patch leaves more of the class",
            min(gain) > 0.05,
            f"accuracy on its training images after relabelling alone {_shares(each('relabelled', 'forget'))}, with "
            f"the patch {_shares(each('concept', 'forget'))}, with the whole donor "
            f"{_shares(each('whole_donor', 'forget'))}"
            + ("" if min(gain) > 0.05 else "; as in the authors' ablation, the labels do the forgetting"),
        ),
        Check(
            f"{place}: the class is gone from the features",
            max(inside) < 0.05,
            f"a regression on them finds it in {_shares(each('concept', 'probe'))} of its unseen images, on retrained "
            f"ones in {_shares(each('retrained', 'probe'))}"
            + ("" if max(inside) < 0.05 else "; the head alone trains; before it only running statistics change"),
        ),
    ]


def _shares(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0%}" for value in values)


# ---- images ------------------------------------------------------------------------------------------------------


def glyph_images(per_class: int, seed: int) -> Dataset:
    """Return images with ``label``, ``marks`` (the glyphs in it) and ``place`` [top, left] of the class's own glyph."""
    luck = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    textures = [np.sin(rows), np.sin(columns), np.sin(rows + columns), np.sin(rows) * np.sin(columns)]
    out: dict[str, list[Any]] = {"id": [], "image": [], "label": [], "marks": [], "place": []}
    for number in range(per_class * len(CLASSES)):
        kind = number % len(CLASSES)
        image = 0.3 + 0.04 * textures[kind] + 0.1 * luck.standard_normal((SIZE, SIZE))
        names = [CLASSES[kind], *(name for name in tuple(GLYPHS)[4:] if luck.random() < 0.5)]
        # Each in a quarter of its own, so that none lies on another.
        for name, quarter in reversed(list(zip(names, luck.permutation(4), strict=False))):
            corner = luck.integers(0, SIZE // 2 - EDGE + 1, 2) + SIZE // 2 * np.array(divmod(int(quarter), 2))
            top, left = int(corner[0]), int(corner[1])
            image[top : top + EDGE, left : left + EDGE] += 0.6 * GLYPHS[name]
        out["place"].append([top, left])
        out["id"].append(example_id({"glyphs": number, "seed": seed}))
        out["image"].append(np.repeat(image[:, :, None], 3, 2).astype(np.float32))
        out["label"].append(CLASSES[kind])
        out["marks"].append(names)
    kinds = {
        "id": Value("string"),
        "image": Array3D(shape=(SIZE, SIZE, 3), dtype="float32"),
        "label": Value("string"),
        "marks": ListOf(Value("string")),
        "place": ListOf(Value("int64")),
    }
    return Dataset.from_dict(out, features=Features(kinds))


def glyph_world(seed: int, per_class: int, epochs: int) -> ClassifierWorld:
    """Return the images of glyphs, of which the first class is to be forgotten, for the small convolutional network."""
    train, test = glyph_images(per_class, seed), glyph_images(max(25, per_class // 4), seed + 1000)
    factory = Factory("expunge.reproductions.classifier_world:small_cnn", {"outputs": len(CLASSES)})
    start = Predictor.of_images(factory.make(seed), list(CLASSES), factory=factory, mean=(0.3,), std=(0.25,))
    return ClassifierWorld(
        whole_class(train, CLASSES[0], unseen=test),
        _others(test, CLASSES[0]),
        start,
        {**RECIPE, "epochs": epochs},
        seed,
    )


def _others(examples: Dataset, label: str) -> Dataset:
    return examples.select([i for i, name in enumerate(examples["label"]) if name != label])


def variants(place: str, world: ClassifierWorld, unseen: Dataset, settings: Mapping[str, Any]) -> dict[str, float]:
    """Forget with every variant and return ``<place>_<variant>_<what>``, as shares.

    "forget" and "unseen": accuracy on training and on unseen images of the class; "others": on unseen images of the
    other classes; "probe": unseen images of the class that a regression on the features finds.
    """
    sets = {"forget": world.request.forget, "unseen": unseen, "others": world.test}
    encoded = {name: world.start.encode(part) for name, part in sets.items()}
    models: dict[str, Predictor] = {"original": world.original, "retrained": world.retrained()}
    found: dict[str, float] = {}
    for name, own in ARMS.items():
        arm = {k: v for k, v in settings.items() if k != "concepts_column" or own.get("patch") not in ("none", "full")}
        models[name] = world.forget("concept_poisoning", {**arm, **own})
    for name, model in models.items():
        for what, part in encoded.items():
            found[f"{place}_{name}_{what}"] = float(model.observe(part).correct.mean())
    for name in ("original", "retrained", "concept"):
        found[f"{place}_{name}_probe"] = probe(models[name], world, encoded["unseen"])
    return found


def probe(model: Predictor, world: ClassifierWorld, unseen: Any) -> float:
    """Return the share of unseen images of the class that a logistic regression on the features finds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = model.observe(world.sets["forget"] + world.sets["retain"])
    asked = model.observe(unseen)
    assert train.features is not None
    assert asked.features is not None
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)).fit(train.features, train.targets)
    return float(fitted.score(asked.features, asked.targets))


def covered(corners: Sequence[tuple[int, int]], size: int, place: Sequence[int]) -> NDArray[np.bool_]:
    """Return for each window whether it covers at least half of a glyph at a place."""
    shared = [
        max(0, min(top + size, place[0] + EDGE) - max(top, place[0]))
        * max(0, min(left + size, place[1] + EDGE) - max(left, place[1]))
        for top, left in corners
    ]
    return np.array(shared) >= EDGE * EDGE / 2


def located(world: ClassifierWorld) -> dict[str, float]:
    """Say whether the planted concept is found, and where it is taken to be."""
    model, request = world.original, world.request
    assert request.retain is not None
    marks = [*request.forget["marks"], *request.retain["marks"]]
    sets = world.sets
    found: dict[str, float] = {}
    for localise, name in (("windows", "glyphs_covered"), ("gradients", "glyphs_covered_gradients")):
        how = Infection("localized", "targeted", 1, EDGE / SIZE, 1 / SIZE, localise, 16, True, world.seed)  # type: ignore[arg-type]
        inferred = infer_concepts(
            model,
            sets["forget"],
            sets["retain"],
            how,
            donor=None,
            clusters=2,
            marks=marks,
            strength=1e-5,
            l1_ratio=0.99,
        )
        bottleneck, windows = inferred.bottleneck, inferred.windows
        assert bottleneck is not None
        best = bottleneck.top(0, 1)[0]
        with asked_for_gradients(model):
            places = peaks(model, sets["forget"], inferred, best, how)
        covers = [covered(windows.corners, windows.size, place) for place in request.forget["place"]]
        found[name] = float(np.mean([cover[k] for cover, k in zip(covers, places, strict=True)]))
        found["glyphs_covered_by_chance"] = float(np.mean([cover.mean() for cover in covers]))
        found["glyphs_planted_first"] = float(bottleneck.concepts.names[best] == CLASSES[0])
        found["glyphs_bottleneck_accuracy"] = bottleneck.accuracy
    return found


# ---- texts -------------------------------------------------------------------------------------------------------


def texts(seed: int, bench: Workbench) -> dict[str, float]:
    """Forget people of a tiny world and return ``texts_<variant>_<what>``.

    "said": answers about those to forget, as the model writes them, that hold the fact asked for; "kept": the same for
    those to keep; "known": mean probability per token of the answers to forget.
    """
    world = small_world(bench, seed, "tiny", oracles=1)
    models: dict[str, Any] = {"original": world.original, "oracle": world.oracle}
    arms: Mapping[str, Mapping[str, Any]] = {
        "masked": {},
        "masked_random": {"labels": "random"},
        "masked_kept": {"labels": "keep"},
        "replaced": {"patch": "none"},
    }
    found: dict[str, float] = {}
    for name, own in arms.items():
        settings = {**TEXTS, **own, "seed": seed, "epochs": 2 if bench.quick else TEXTS["epochs"]}
        done = unlearn(world.original, world.request, "concept_poisoning", settings=settings)
        models[name] = done.model
        if name == "masked":
            notes = done.config["concepts"]
            found["texts_answers_changed"] = notes["answers changed"] / notes["answers"]
            found["texts_completeness_error"] = notes["largest completeness error"]
    for name, model in models.items():
        found[f"texts_{name}_said"] = said(model, world.request.forget)
        assert world.request.retain is not None
        found[f"texts_{name}_kept"] = said(model, world.request.retain)
        scores = model.score([(row["prompt"], row["answer"]) for row in world.request.forget.to_list()])
        found[f"texts_{name}_known"] = float(np.mean([np.exp(s.log_prob.mean()) for s in scores]))
    return found


def said(model: CausalLM, examples: Dataset) -> float:
    """Return the share of answers, as the model writes them, that hold the fact asked for."""
    rows = examples.to_list()
    answers = model.generate([row["prompt"] for row in rows], [24] * len(rows))
    return float(
        np.mean([row["value"].casefold() in answer.casefold() for row, answer in zip(rows, answers, strict=True)])
    )
