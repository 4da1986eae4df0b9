"""Concept poisoning of images: what speaks for a class, where it is, and another class's pasted over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.methods.general.random_label import draw_label
from expunge.tasks.attribution import asked_for_gradients
from expunge.tasks.concept_bottleneck import (
    Bottleneck,
    Windows,
    annotated_concepts,
    clustered_concepts,
    features_in_parts,
    fit_bottleneck,
    window_contributions,
    window_cosines,
    window_features,
)
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.predictor import Predictor
from expunge.training.plan import ALTERNATIVE, draw

# As many images and windows at most go into concepts and bottleneck; more change little and cost much.
IMAGES, WINDOWS = 1500, 1500
# Edge of a whole donor image, as a share of the image's shorter edge (160 of 224 pixels).
FULL = 160 / 224


@dataclass(frozen=True)
class Infection:
    """How images are poisoned; the fields are those of the method's settings.

    Attributes:
        patch, labels, top, window, stride, localise, steps, exclude_true_label: see the method.
        seed: of all draws.
    """

    patch: str
    labels: str
    top: int
    window: float
    stride: float
    localise: Literal["windows", "gradients"]
    steps: int
    exclude_true_label: bool
    seed: int

    @property
    def reads_concepts(self) -> bool:
        """Whether concepts decide what is pasted where."""
        return self.patch in ("localized", "center", "random")


@dataclass(frozen=True, eq=False)
class Inferred:
    """What was found out about the classes to forget.

    Attributes:
        windows: of the images.
        donors: class to forget -> class that gives patch and label.
        bottleneck: which concepts speak for which class; None where no concept is read.
        baseline: (C, 1, 1) mean normalised pixel, an image without content.
    """

    windows: Windows
    donors: dict[int, int]
    bottleneck: Bottleneck | None
    baseline: Tensor

    def facts(self, names: Sequence[str], top: int) -> dict[str, Any]:
        """Return donors and concepts in plain words."""
        out: dict[str, Any] = {"donors": {names[c]: names[d] for c, d in self.donors.items()}}
        if (found := self.bottleneck) is not None:
            known = found.concepts.names
            out["bottleneck accuracy"] = round(found.accuracy, 4)
            out["strongest"] = {
                names[c]: {known[k]: round(float(found.weights[c, k]), 3) for k in found.top(c, top)}
                for c in sorted({*self.donors, *self.donors.values()})
            }
        return out


def infer_concepts(
    task: Predictor,
    forget: LabelledExamples,
    retain: LabelledExamples,
    infection: Infection,
    *,
    donor: int | None,
    clusters: int,
    marks: Sequence[Sequence[str]] | None,
    strength: float,
    l1_ratio: float,
) -> Inferred:
    """Find donors and, where they are read, concepts and the bottleneck.

    Args:
        task: the model before unlearning; left as it is.
        forget, retain: N_f and N_r images.
        infection: how they are poisoned.
        donor: class that gives patch and label; None for the one that the model finds likeliest, after its own, on the
            class's images.
        clusters: how many concepts to look for where there are no marks.
        marks: of each of the N_f + N_r images, the concepts that it shows.
        strength, l1_ratio: penalty of the bottleneck.

    Raises:
        BadInput: no class of the retain set can give, or no concept that can be told apart.
    """
    height, width = forget.inputs[0].shape[-2:]
    windows = Windows.of(height, width, infection.window, infection.stride)
    both = forget + retain
    with asked_for_gradients(task):
        donors = dict.fromkeys(forget.targets.unique().tolist(), donor) if donor is not None else None
        donors = donors or _confused(task, forget, retain)
        sample = sorted(range(len(both)), key=lambda i: draw(infection.seed, "sample", both.ids[i]))[:IMAGES]
        part = both.take(sample)
        pixels = task.batch(part)["pixel_values"]
        found = None
        if infection.reads_concepts:
            features = features_in_parts(task, pixels).double().cpu().numpy()
            if marks is not None:
                concepts = annotated_concepts(features, [marks[i] for i in sample])
            else:
                concepts = clustered_concepts(
                    _windows_of(task, pixels, windows, infection.seed), clusters, infection.seed
                )
            found = fit_bottleneck(
                concepts, features, part.targets.numpy(), task.outcome.width,
                strength=strength, l1_ratio=l1_ratio, seed=infection.seed,
            )  # fmt: skip
        baseline = pixels.mean((0, 2, 3))[:, None, None]
    return Inferred(windows, donors, found, baseline)


def _windows_of(task: Predictor, pixels: Tensor, windows: Windows, seed: int) -> Any:
    """Features of windows drawn from all images and places."""
    luck = np.random.default_rng(seed)
    count = min(WINDOWS, len(pixels) * len(windows.corners))
    images = np.arange(count) % len(pixels)
    corners = luck.integers(0, len(windows.corners), count)
    parts = []
    step = max(1, task.tokens_per_forward)
    for start in range(0, count, step):
        cut = []
        for i, k in zip(images[start : start + step], corners[start : start + step], strict=True):
            one = replace(windows, corners=(windows.corners[k],))
            cut.append(one.crops(pixels[i : i + 1])[0, 0])
        parts.append(features_in_parts(task, torch.stack(cut)))
    return torch.cat(parts).double().cpu().numpy()


def _confused(task: Predictor, forget: LabelledExamples, retain: LabelledExamples) -> dict[int, int]:
    """Class to forget -> the other class that the model finds likeliest on its images, of those that can give."""
    gone, kept = set(forget.targets.tolist()), set(retain.targets.tolist())
    donors = {}
    for c in sorted(gone):
        able = sorted((kept - gone) or (kept - {c}))
        if not able:
            what = "has no class beside the one to forget, so nothing can be pasted or meant instead"
            raise BadInput(Problem("retain", what, "give examples of other classes"))
        own = forget.take([i for i, t in enumerate(forget.targets.tolist()) if t == c][:IMAGES])
        with torch.no_grad():
            likely = torch.softmax(task.statistics(own).logits, -1).mean(0)
        donors[c] = max(able, key=lambda k: (float(likely[k]), -k))
    return donors


def peaks(
    task: Predictor, images: LabelledExamples, inferred: Inferred, concept: int, infection: Infection
) -> list[int]:
    """Return for each image the window where a concept is strongest.

    Args:
        task: the model, in evaluation mode.
        images: N of them.
        inferred: windows and concepts.
        concept: which.
        infection: says how windows are judged.
    """
    assert inferred.bottleneck is not None
    vector = torch.from_numpy(inferred.bottleneck.concepts.vectors[concept]).float().to(task.device)
    vector = vector / vector.norm().clamp_min(1e-12)
    pixels = task.batch(images)["pixel_values"]
    if infection.localise == "gradients":
        scores = window_contributions(
            task, pixels, inferred.baseline.to(pixels), inferred.windows, vector, infection.steps
        )
    else:
        scores = window_cosines(window_features(task, pixels, inferred.windows), vector)
    found: list[int] = scores.argmax(1).tolist()
    return found


def paste(image: Tensor, patch: Tensor, top: int, left: int) -> Tensor:
    """Return a (C, H, W) image with a (C, h, w) patch at a corner, clamped into the frame."""
    height, width = patch.shape[-2:]
    top = min(max(0, top), image.shape[-2] - height)
    left = min(max(0, left), image.shape[-1] - width)
    out = image.clone()
    out[:, top : top + height, left : left + width] = patch
    return out


def shrunk(image: Tensor, edge: int) -> Tensor:
    """Return a (C, H, W) image at another size, its shorter edge ``edge`` pixels, on the scale it is stored on."""
    height, width = image.shape[-2:]
    factor = edge / min(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)[0]
    return small.round().clamp(0, 255).to(image.dtype) if image.dtype == torch.uint8 else small


def poisoned_images(
    task: Predictor, forget: LabelledExamples, retain: LabelledExamples, inferred: Inferred, infection: Infection
) -> tuple[LabelledExamples, dict[str, Any]]:
    """Return the forget set with patches and labels, and what was done in plain words.

    Args:
        task: the model before unlearning; left as it is.
        forget, retain: the images; donors are drawn from ``retain`` by (seed, id of the image to forget).
        inferred: what was found out.
        infection: how to poison.
    """
    assert isinstance(forget.inputs, Tensor)
    assert isinstance(retain.inputs, Tensor)
    images, classes = forget.inputs.clone(), forget.targets.tolist()
    targets, changed = forget.targets.clone(), 0
    with asked_for_gradients(task):
        for c, donor in inferred.donors.items():
            members = [i for i, t in enumerate(classes) if t == c]
            pool = [i for i, t in enumerate(retain.targets.tolist()) if t == donor]
            if infection.patch != "none":
                given = [pool[draw(infection.seed, "donor", forget.ids[i]) % len(pool)] for i in members]
                new = _pasted(task, forget.take(members), retain.take(given), (c, donor), inferred, infection)
                changed += int((new != images[members]).flatten(1).any(1).sum())
                images[members] = new
            if infection.labels == "targeted":
                targets[members] = donor
            elif infection.labels == "random":
                without = c if infection.exclude_true_label else None
                for i in members:
                    targets[i] = draw_label(forget.ids[i], task.outcome.width, infection.seed, without)
    ids = [f"{identity}{ALTERNATIVE}0" for identity in forget.ids]
    facts = {
        "images": len(ids),
        "images changed": changed,
        "labels changed": int((targets != forget.targets).sum()),
    }
    return LabelledExamples(ids, images, targets), facts


def _pasted(
    task: Predictor,
    own: LabelledExamples,
    donors: LabelledExamples,
    classes: tuple[int, int],
    inferred: Inferred,
    infection: Infection,
) -> Tensor:
    """Paste from each donor into the image beside it."""
    assert isinstance(own.inputs, Tensor)
    assert isinstance(donors.inputs, Tensor)
    windows = inferred.windows
    height, width = windows.height, windows.width
    if infection.patch == "full":
        patches = [shrunk(image, max(1, round(FULL * min(height, width)))) for image in donors.inputs]
        return torch.stack([paste(image, p, *_centred(image, p)) for image, p in zip(own.inputs, patches, strict=True)])
    assert inferred.bottleneck is not None
    out = own.inputs.clone()
    pairs = zip(*(inferred.bottleneck.top(c, infection.top) for c in classes), strict=True)
    for number, (target, giving) in enumerate(pairs):
        there = peaks(task, donors, inferred, giving, infection)
        here = peaks(task, own, inferred, target, infection) if infection.patch == "localized" else there
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            top, left = windows.corners[b]
            patch = donors.inputs[i][:, top : top + windows.size, left : left + windows.size]
            place = windows.corners[a]
            if infection.patch == "center":
                place = _centred(out[i], patch)
            elif infection.patch == "random":
                luck = draw(infection.seed, "place", number, own.ids[i])
                place = (luck % (height - windows.size + 1), luck // 2**20 % (width - windows.size + 1))
            out[i] = paste(out[i], patch, *place)
    return out


def _centred(image: Tensor, patch: Tensor) -> tuple[int, int]:
    return (image.shape[-2] - patch.shape[-2]) // 2, (image.shape[-1] - patch.shape[-1]) // 2
