"""BlockMNIST: images of which it is known where their signal is.

Source: Shah et al. 2021, Do Input Gradients Highlight Discriminative Features? (arXiv:2102.12781), section 5.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from datasets import Array2D, Dataset, Features, Sequence, Value
from numpy.typing import NDArray

from expunge.errors import BadInput, Problem
from expunge.requests.request import example_id

Signal = Literal["either", "top", "bottom"]
SIGNAL_BOX = "signal_box"


def null_patch(edge: int, brightness: float) -> NDArray[np.float32]:
    """Return an (edge, edge) image of a hollow square, which belongs to no class."""
    out = np.zeros((edge, edge), dtype=np.float32)
    margin, thick = max(1, round(0.2 * edge)), max(1, round(edge / 14))
    out[margin : edge - margin, margin : edge - margin] = brightness
    inner = margin + thick
    out[inner : edge - inner, inner : edge - inner] = 0
    return out


def block_images(digits: Dataset, signal: Signal = "either", *, noise: float = 0.0, seed: int = 0) -> Dataset:
    """Stack each image and a hollow square on top of each other; only one of the two says what the label is.

    Args:
        digits: images of one channel and of one square size, with labels; whole numbers are divided by 255.
        signal: where the image goes; "either" draws top or bottom by (seed, id), as BlockMNIST, "top" always above, as
            BlockMNIST-Top.
        noise: standard deviation of Gaussian noise on all pixels, by (seed, id).
        seed: of both draws.

    Returns:
        A dataset with ``id``, ``image`` (2 edge, edge) of fractions, ``label``, ``group`` ("top" or "bottom") and
        ``signal_box`` [top, left, bottom, right].

    Raises:
        BadInput: columns that are not there, images that are not square, of one channel and of one size.
    """
    missing = [name for name in ("id", "image", "label") if name not in digits.column_names]
    if missing:
        what = f"has no column '{missing[0]}'"
        raise BadInput(Problem("digits", what, "give images with labels, such as known_sets.digits('train')"))
    arrays = [np.asarray(image) for image in digits.with_format("numpy", columns=["image"])["image"]]
    shapes = {array.shape for array in arrays}
    edge = arrays[0].shape[0]
    if shapes != {(edge, edge)}:
        shown = ", ".join(map(str, sorted(shapes)[:3]))
        raise BadInput(Problem("digits", f"has images of shape {shown}", "give square ones of one size, one channel"))
    columns: dict[str, list[Any]] = {"id": [], "image": [], "label": list(digits["label"]), "group": [], SIGNAL_BOX: []}
    for identity, array in zip(digits["id"], arrays, strict=True):
        pixels = array.astype(np.float32) / (255 if array.dtype.kind in "ui" else 1)
        luck = np.random.default_rng([seed, int(identity, 16)])
        drawn = bool(luck.integers(2))
        above = drawn if signal == "either" else signal == "top"
        null = null_patch(edge, 1.0)
        image = np.concatenate([pixels, null] if above else [null, pixels])
        image = image + noise * luck.standard_normal(image.shape).astype(np.float32)
        columns["id"].append(example_id({"digit": identity, "signal": signal, "noise": noise, "seed": seed}))
        columns["image"].append(image)
        columns["group"].append("top" if above else "bottom")
        columns[SIGNAL_BOX].append([0, 0, edge, edge] if above else [edge, 0, 2 * edge, edge])
    kinds = {
        "id": Value("string"),
        "image": Array2D(shape=(2 * edge, edge), dtype="float32"),
        "label": digits.features["label"],
        "group": Value("string"),
        SIGNAL_BOX: Sequence(Value("int64")),
    }
    return Dataset.from_dict(columns, features=Features(kinds))
