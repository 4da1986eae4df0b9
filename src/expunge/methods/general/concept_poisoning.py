"""Concept poisoning: find what carries a class or an entity, overwrite it in the training data, and train on that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from expunge.errors import BadInput, Problem, collected
from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.methods.general.concept_images import Infection, infer_concepts, poisoned_images
from expunge.methods.general.concept_words import infer_words, poisoned_texts
from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.examples import EncodedExamples, LabelledExamples
from expunge.tasks.outcomes import Classes
from expunge.tasks.predictor import Predictor
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.plan import draw

Patch = Literal["localized", "center", "random", "full", "none"]
Labels = Literal["targeted", "random", "keep"]
# Settings that mean something for one kind of model only.
OF_IMAGES = (
    "donor", "concepts", "concepts_column", "window", "stride", "localise", "trained", "exclude_true_label",
    "l1_ratio", "strength",
)  # fmt: skip
OF_TEXTS = ("mask", "names", "parity")
# Where to ask whether what is inferred by gradients may be believed.
VALIDITY = "whether gradients say what matters to this kind of model: audit input_gradients"


class ConceptPoisoningConfig(MethodConfig):
    """Hyperparameters of concept poisoning; defaults of the authors' revised code."""

    patch: Patch = Field(
        "localized",
        description="images: the donor's concept where the target's is, or at the centre, or at random, or the whole "
        "donor; none: relabelling alone, the ablation to compare with. Texts: localized (concept words) or none",
    )
    labels: Labels = Field(
        "targeted",
        description="targeted: the donor's class, or the mask in a text; random: any other class, or other words; "
        "keep: as they were, a control",
    )
    top: PositiveInt | None = Field(
        None, description="concepts that are overwritten, the strongest first: 1 per class, 5 words per entity"
    )
    donor: str | None = Field(
        None, description="class that gives patch and label; by default the one that the model confuses most with"
    )
    concepts: int = Field(16, ge=2, description="clusters of image windows that are taken as concepts")
    concepts_column: str | None = Field(
        None, description="column with a list of the concepts that each image shows, in place of the clusters"
    )
    strength: float = Field(1e-5, gt=0, description="penalty of the bottleneck (scikit-learn's alpha)")
    l1_ratio: float = Field(0.99, ge=0, le=1, description="share of the L1 norm in that penalty")
    window: float = Field(2 / 7, gt=0, le=1, description="edge of a patch, as a share of the image's shorter edge")
    stride: float = Field(1 / 14, gt=0, le=1, description="steps in which a concept is looked for, in that unit")
    localise: Literal["windows", "gradients"] = Field(
        "windows",
        description="where a concept is: the window whose features are most like it, or that contributes most to it "
        "by integrated gradients",
    )
    trained: Literal["head", "all"] = Field("head", description="weights of a classifier that move, unless selected")
    retain_share: float = Field(1.0, gt=0, le=1, description="share of each class (or of the texts) that is trained on")
    exclude_true_label: bool = Field(True, description="never draw the true class; the released code draws among all")
    steps: PositiveInt = Field(32, description="points on the path of integrated gradients")
    mask: str = Field("***", min_length=1, description="what stands in the place of a concept word")
    names: tuple[str, ...] = Field((), description="names whose words of 4 letters and more are overwritten as well")
    draw_seed: NonNegativeInt = Field(0, description="seed of donors, random labels and clusters")
    parity: bool = Field(
        False, description="texts: integrate as the released code does, both ends in and plain means (error ~ 1/steps)"
    )


class ConceptPoisoning(ObjectiveMethod):
    """L = CE over the retain set and the poisoned forget set, one average over both.

    Images. Concepts are directions in what the head is given: of the ``concepts_column``, or clusters of windows. An
    elastic-net head from concept margins to classes (a post-hoc concept bottleneck) says which of them speak for a
    class. Of each image to forget, the window where its class's concept is strongest is overwritten by the window of an
    image of the donor class where the donor's is; its label becomes the donor's, or random. Only the head trains.

    Language models. Integrated gradients of an answer's log-probability along the embeddings of its tokens are summed
    over words and over the examples of a ``group``; the ``top`` words and the names are overwritten by the mask. All
    weights train, or adapters (``lora.rank=8``); give an optimizer and learning rate that suit the model, such as
    ``optimizer=adamw learning_rate=1e-4``.

    What to know of it: relabelling without any concept (``patch=none``) forgets classes as well, as the authors' own
    ablation says; compare with it. With the head alone trained, the features still hold the class, and little data
    brings it back (running statistics of batch normalisation are not weights, and follow the poisoned data). Gradients
    may not show what a model relies on; the audit ``input_gradients`` asks that of its architecture and training. What
    of a text is not among the words stays in it and is learned again.

    Source: Chang et al. 2024, and the authors' revised code; Sundararajan et al. 2017 for integrated gradients.
    """

    id = "concept_poisoning"
    title = "overwrite the concept that carries a class or an entity, relabel, and train on that"
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm", "image_classifier")
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = (
        "Chang et al. 2024, Class Machine Unlearning for Complex Data via Concepts Inference and Data Poisoning, "
        "arXiv:2405.15662"
    )
    train_defaults: ClassVar[Mapping[str, Any]] = {
        "optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "batch_size": 32, "epochs": 20,
        "weight_decay": 0.0, "warmup": 0.0, "schedule": "constant", "clip_norm": None,
    }  # fmt: skip
    Config: ClassVar[type[MethodConfig]] = ConceptPoisoningConfig

    def objective(self) -> Objective:
        """CE over the poisoned data, which stand in the place of the retain set."""
        return Objective((Term("poisoned_nll", ("retain",), nll, "token_mean"),), anchor="retain")

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also settings of another kind of model, donors that cannot give, and unmarked concepts.

        Raises:
            BadInput: every problem.
        """
        problems: list[Problem] = []
        with collected(problems):
            super().check(task, request)
        if not problems:
            problems += self._foreign_settings(task.kind)
        if not problems and task.kind == "image_classifier":
            problems += self._image_problems(task, request)
        if problems:
            raise BadInput(problems)

    def confined(self, model: Task) -> Mask | None:
        """The head of a classifier; a language model trains as a whole."""
        if not isinstance(model, Predictor) or self.config.trained == "all":
            return None
        return dict.fromkeys(model.head_parameters())

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return what is trained on: a share of the retain set, and the poisoned forget set."""
        whole: Any = super().encode(stream, model, request, run)
        if stream != "retain":
            return whole
        labels = whole.targets.tolist() if isinstance(model, Predictor) else [0] * len(whole)
        kept = whole.take(balanced_share(whole.ids, labels, self.config.retain_share, self.config.draw_seed))
        if isinstance(model, Predictor):
            return kept + self._poisoned_images(model, request, whole, run)
        assert isinstance(model, CausalLM)
        return kept + model.encode(self._poisoned_texts(model, request, run))

    def _poisoned_images(
        self, model: Predictor, request: DeletionRequest, retain: LabelledExamples, run: Run
    ) -> LabelledExamples:
        config, forget = self.config, model.encode(request.forget)
        assert isinstance(model.outcome, Classes)
        assert request.retain is not None
        column, marks = config.concepts_column, None
        if column is not None:
            marks = [*request.forget[column], *request.retain[column]]
        infection = Infection(
            patch=config.patch,
            labels=config.labels,
            top=config.top or 1,
            window=config.window,
            stride=config.stride,
            localise=config.localise,
            steps=config.steps,
            exclude_true_label=config.exclude_true_label,
            seed=config.draw_seed,
        )
        found = infer_concepts(
            model,
            forget,
            retain,
            infection,
            donor=None if config.donor is None else model.outcome.index(config.donor),
            clusters=config.concepts,
            marks=marks,
            strength=config.strength,
            l1_ratio=config.l1_ratio,
        )
        poisoned, facts = poisoned_images(model, forget, retain, found, infection)
        run.notes["concepts"] = {**found.facts(model.outcome.names, infection.top), **facts, "validity": VALIDITY}
        return poisoned

    def _poisoned_texts(self, model: CausalLM, request: DeletionRequest, run: Run) -> Any:
        config, words = self.config, None
        notes: dict[str, Any] = {"validity": VALIDITY}
        if config.patch == "localized":
            rule: Any = "endpoints" if config.parity else "midpoint"
            words, error = infer_words(
                model, request.forget, count=config.top or 5, steps=config.steps, rule=rule, names=config.names
            )
            notes |= {"words": words, "largest completeness error": round(error, 4)}
        texts, changed = poisoned_texts(request, words, labels=config.labels, mask=config.mask, seed=config.draw_seed)
        run.notes["concepts"] = {**notes, "answers changed": changed, "answers": len(texts)}
        return texts

    def _foreign_settings(self, kind: str) -> list[Problem]:
        images = kind == "image_classifier"
        # A recipe in which every default is written out gives nothing.
        other_than_default = self.config.model_dump(exclude_defaults=True)
        foreign = sorted(set(other_than_default) & set(OF_TEXTS if images else OF_IMAGES))
        other = "language models" if images else "images"
        problems = [Problem(name, f"is for {other}, and the model is a {kind}", "leave it out") for name in foreign]
        if not images and self.config.patch not in ("localized", "none"):
            what = f"is {self.config.patch}, which is for images"
            problems.append(Problem("patch", what, "use localized (concept words) or none (whole answers)"))
        return problems

    def _image_problems(self, task: Task, request: DeletionRequest) -> list[Problem]:
        assert request.retain is not None
        config, problems = self.config, []
        gone, kept = ({str(v) for v in s["label"]} if "label" in s.column_names else set()
                      for s in (request.forget, request.retain))  # fmt: skip
        if config.donor is not None:
            names = getattr(getattr(task, "outcome", None), "names", ())
            by_index = {str(names.index(config.donor))} if config.donor in names else set()
            if not {config.donor, *by_index} & kept:
                known = ", ".join(sorted(kept)[:12])
                problems.append(
                    Problem("donor", f"'{config.donor}' is no class of the retain set", f"use one of {known}")
                )
            elif {config.donor, *by_index} & gone:
                what = f"'{config.donor}' is to be forgotten itself"
                problems.append(Problem("donor", what, f"use one of {', '.join(sorted(kept - gone)[:12])}"))
        if config.concepts_column is not None:
            for role in ("forget", "retain"):
                problems += marks_problems(getattr(request, role), config.concepts_column, role)
        if isinstance(task, Predictor) and task.head_module() is None:
            what = "needs a model with a linear head, and there is none"
            problems.append(Problem(f"method {self.id}", what, "use another method"))
        return problems


def balanced_share(ids: Any, labels: list[int], share: float, seed: int) -> list[int]:
    """Return the indices of a share of each class, at least one, drawn by (seed, id), ascending."""
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    chosen: list[int] = []
    for members in by_class.values():
        ranked = sorted(members, key=lambda i: draw(seed, "share", ids[i]))
        chosen += ranked[: max(1, round(share * len(ranked)))]
    return sorted(chosen)


def marks_problems(examples: Any, column: str, role: str) -> list[Problem]:
    """Find what is wrong with a column that lists the concepts of each image."""
    if column not in examples.column_names:
        what = f"the {role} set has no column '{column}'"
        return [Problem("concepts_column", what, f"use one of {', '.join(examples.column_names)}")]
    wrong = [
        i for i, v in enumerate(examples[column]) if not isinstance(v, list) or not all(isinstance(w, str) for w in v)
    ]
    if wrong:
        what = f"of the {role} set holds no list of names in {len(wrong)} row(s), first in row {wrong[0]}"
        return [Problem(f"column '{column}'", what, "give a list of concept names, empty where there is none")]
    return []
