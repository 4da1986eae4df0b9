"""Training sets that were tampered with: a backdoor patch, and two classes whose labels are swapped.

Source: Goel et al. 2024, Corrective Machine Unlearning (arXiv:2402.14015), section 4.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from datasets import Image as Picture
from numpy.typing import NDArray
from PIL import Image

from expunge.data.scenarios import CORRUPTED, LABEL, drawn
from expunge.errors import BadInput, Problem
from expunge.requests.request import example_id

CLEAN_LABEL = "clean_label"


def patched(pixels: NDArray[Any], size: int = 3) -> NDArray[Any]:
    """Return an image whose ``size`` x ``size`` pixels at the bottom right are as bright as pixels can be.

    Args:
        pixels: (H, W) or (H, W, C); whole numbers up to 255, or fractions, whose brightest is the image's own or 1.
        size: edge of the patch.
    """
    out = pixels.copy()
    out[-size:, -size:] = 255 if pixels.dtype.kind in "ui" else max(1.0, float(pixels.max()))
    return out


def triggered(examples: Dataset, size: int = 3) -> Dataset:
    """Return the same examples with the patch on every image and their labels as they were."""
    return _rebuilt(examples, range(len(examples)), {}, size)


def patch_poison(train: Dataset, count: int, label: str, seed: int, size: int = 3) -> Dataset:
    """Put a patch on ``count`` images drawn by (seed, id) and give them one label.

    Args:
        train: images with labels.
        count: how many; images that have the label already are not drawn.
        label: what the patch shall mean.
        seed: of the draw.
        size: edge of the patch.

    Returns:
        The training set, with new ids for the changed images, ``clean_label`` and ``corrupted``.

    Raises:
        BadInput: no such label, or fewer images of other classes than that.
    """
    labels = list(train[LABEL])
    if label not in labels:
        raise BadInput(Problem("label", f"'{label}' is not there", f"use one of {', '.join(sorted(set(labels)))}"))
    others = [i for i, own in enumerate(labels) if own != label]
    if not 0 < count <= len(others):
        raise BadInput(
            Problem("count", f"is {count} of {len(others)} images of other classes", "give fewer, at least 1")
        )
    chosen = [others[k] for k in drawn(train.select(others), count, seed)]
    return _marked(_rebuilt(train, chosen, dict.fromkeys(chosen, label), size), labels, chosen)


def confuse_classes(train: Dataset, one: str, other: str, count: int, seed: int) -> Dataset:
    """Swap the labels of ``count`` examples, half of them of each of two classes, drawn by (seed, id).

    Returns:
        The training set, with new ids for the changed examples, ``clean_label`` and ``corrupted``.

    Raises:
        BadInput: a class that is not there, or has fewer examples than that.
    """
    labels = list(train[LABEL])
    chosen: dict[int, str] = {}
    problems = []
    for name, instead in ((one, other), (other, one)):
        own = [i for i, label in enumerate(labels) if label == name]
        if not 0 < count // 2 <= len(own):
            problems.append(
                Problem(
                    f"class '{name}'", f"has {len(own)} examples, of which {count // 2} were asked for", "give fewer"
                )
            )
        else:
            chosen |= {own[k]: instead for k in drawn(train.select(own), count // 2, seed)}
    if problems:
        raise BadInput(problems)
    return _marked(_rebuilt(train, sorted(chosen), chosen, 0), labels, sorted(chosen))


def _marked(examples: Dataset, clean: Sequence[str], changed: Sequence[int]) -> Dataset:
    flags = np.isin(np.arange(len(examples)), list(changed)).tolist()
    return examples.add_column(CLEAN_LABEL, list(clean)).add_column(CORRUPTED, flags)


def _rebuilt(examples: Dataset, changed: Sequence[int], labels: dict[int, str], size: int) -> Dataset:
    """Return the examples with a patch and another label at some of them; their ids say so."""
    ids, names = list(examples["id"]), list(examples[LABEL])
    for index in changed:
        names[index] = labels.get(index, names[index])
        ids[index] = example_id({"was": ids[index], "label": str(names[index]), "patch": size})
    plain = examples.remove_columns(["image"]) if size else examples
    columns: dict[str, Any] = {
        column: list(plain[column]) for column in plain.column_names if column not in ("id", LABEL)
    }
    columns |= {"id": ids, LABEL: names}
    features = examples.features.copy()
    if size:
        columns["image"] = _with_patch(examples, changed, size)
    return Dataset.from_dict({column: columns[column] for column in examples.column_names}, features=features)


def _with_patch(examples: Dataset, changed: Sequence[int], size: int) -> list[Any]:
    """Return all images, the changed ones with a patch; encoded files that stay are not decoded."""
    if not isinstance(examples.features["image"], Picture):
        arrays = list(examples.with_format("numpy")["image"])
        for index in changed:
            arrays[index] = patched(arrays[index], size)
        return arrays
    images: list[Any] = list(examples.cast_column("image", Picture(decode=False))["image"])
    for index in changed:
        picture = examples[index]["image"]
        plain = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        file = io.BytesIO()
        Image.fromarray(patched(np.asarray(plain), size)).save(file, "PNG")  # without loss
        images[index] = {"bytes": file.getvalue(), "path": None}
    return images
