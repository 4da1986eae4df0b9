"""Published sets of images, texts and tables as labelled examples, and those that come with scikit-learn.

The files are looked for in the folder given, else in ``$EXPUNGE_DATA``; nothing is downloaded. Scikit-learn's are
inside the package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Array2D, Dataset, Features, Value

from expunge.data.labelled import read_labelled
from expunge.errors import BadInput, Problem
from expunge.requests.request import example_id

Split = Literal["train", "test"]
ABALONE = ("sex", "length", "diameter", "height", "whole", "shucked", "viscera", "shell", "rings")
ADULT = ("age", "workclass", "fnlwgt", "education", "education_years", "marital_status", "occupation", "relationship",
         "race", "gender", "capital_gain", "capital_loss", "hours", "country", "income")  # fmt: skip


def data_file(name: str, folder: str | Path | None = None) -> Path:
    """Return a published file.

    Args:
        name: such as "adult/adult-train.csv".
        folder: where the sets are; ``$EXPUNGE_DATA`` if left out.

    Raises:
        BadInput: no folder is named, or the file is not in it.
    """
    root = folder or os.environ.get("EXPUNGE_DATA")
    if not root:
        raise BadInput(Problem("EXPUNGE_DATA", f"is not set, and {name} is needed", "name the folder of the data"))
    file = Path(root).expanduser() / name
    if not file.is_file():
        raise BadInput(Problem(str(file), "is not there", "put the file there, or name another folder"))
    return file


def cifar10(split: Split, folder: str | Path | None = None, limit: int | None = None) -> Dataset:
    """CIFAR-10, balanced subset of 10 x 1000 and 10 x 200 pictures of 32 x 32."""
    size = {"train": 1000, "test": 200}[split]
    return _limited(
        read_labelled(data_file(f"cifar10/cifar10_{split}_10x{size}.zip", folder), "image", duplicates="drop"), limit
    )


def mnist10k(split: Split, folder: str | Path | None = None, limit: int | None = None) -> Dataset:
    """The 10,000 digits of MNIST's test set, of which every fifth is for testing: 28 x 28, one channel.

    The two halves of the file are of different writers, so that the split goes through all of it.
    """
    images = read_labelled(data_file("mnist10k/t10k-images-idx3-ubyte.gz", folder), "image", duplicates="drop")
    wanted = [i for i in range(len(images)) if (i % 5 == 4) == (split == "test")]
    return _limited(images.select(wanted), limit)


def california_housing(folder: str | Path | None = None) -> Dataset:
    """20,640 districts; ``target`` is the median house value in dollars, ``group`` the ocean proximity."""
    columns = {"target": "median_house_value", "group": "ocean_proximity"}
    return read_labelled(
        data_file("california_housing/housing.csv", folder), "tabular", columns=columns, duplicates="drop"
    )


def abalone(folder: str | Path | None = None) -> Dataset:
    """4,177 shells; ``target`` is the number of rings (age in years less 1.5), ``group`` the sex."""
    rows = _headless(data_file("abalone/abalone.csv", folder), ABALONE)
    return read_labelled(rows, "tabular", columns={"target": "rings"}, duplicates="drop")


def adult(folder: str | Path | None = None) -> Dataset:
    """32,561 people of the census; ``label`` is the income class."""
    rows = _headless(data_file("adult/adult-train.csv", folder), ADULT)
    return read_labelled(rows, "tabular", columns={"label": "income"}, duplicates="drop")


def clinc150(split: Literal["train", "val", "test"], folder: str | Path | None = None) -> Dataset:
    """Requests to an assistant; ``label`` is one of 150 intents, ``group`` its domain, one of 10."""
    stored = json.loads(data_file("clinc150/data_small.json", folder).read_text(encoding="utf-8"))
    domains = json.loads(data_file("clinc150/domains.json", folder).read_text(encoding="utf-8"))
    of = {intent: domain for domain, intents in domains.items() for intent in intents}
    rows = [{"text": text, "label": intent, "group": of[intent]} for text, intent in stored[split]]
    return read_labelled(Dataset.from_list(rows), "text", duplicates="drop")


def digits(split: Split, noise: float = 0.45, seed: int = 0) -> Dataset:
    """Scikit-learn's 1,797 digits of 8 x 8 with Gaussian noise on their pixels (scaled to 0..1), 597 for testing.

    Without noise a small network predicts digits that it never saw almost as well as those that it did, and every way
    to forget looks perfect.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    luck = np.random.default_rng(seed)
    order = luck.permutation(len(found.target))
    pixels = (found.images / 16 + noise * luck.standard_normal(found.images.shape)).astype(np.float32)
    chosen = order[:1200] if split == "train" else order[1200:]
    rows = {
        "id": [example_id({"digit": int(i), "noise": noise, "seed": seed}) for i in chosen],
        "image": list(pixels[chosen]),
        "label": [str(found.target[i]) for i in chosen],
    }
    kinds = {"id": Value("string"), "image": Array2D(shape=(8, 8), dtype="float32"), "label": Value("string")}
    return Dataset.from_dict(rows, features=Features(kinds))


def bundled_table(name: Literal["diabetes", "wine", "breast_cancer", "iris"]) -> Dataset:
    """A table that comes with scikit-learn: ``diabetes`` has a ``target``, the others have a ``label``."""
    import sklearn.datasets

    load: Callable[..., Any] = getattr(sklearn.datasets, f"load_{name}")
    found = load()
    columns: dict[str, list[Any]] = {
        str(column).replace(" ", "_"): found.data[:, k].tolist() for k, column in enumerate(found.feature_names)
    }
    if name == "diabetes":
        columns["target"] = found.target.astype(float).tolist()
    else:
        columns["label"] = [str(found.target_names[k]) for k in found.target]
    return read_labelled(Dataset.from_dict(columns), "tabular", duplicates="drop")


def _headless(file: Path, names: Sequence[str]) -> Dataset:
    """Read a CSV file without a header line."""
    columns: dict[str, list[str]] = {name: [] for name in names}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in line.split(",")]
        if cells == [""]:
            continue
        if len(cells) != len(names):
            what = f"has {len(cells)} values where there are {len(names)} columns"
            raise BadInput(Problem(f"{file} line {number}", what, "copy or download the file again"))
        for name, cell in zip(names, cells, strict=True):
            columns[name].append(cell)
    return Dataset.from_dict(columns)


def _limited(examples: Dataset, limit: int | None) -> Dataset:
    return examples if limit is None else examples.select(range(min(limit, len(examples))))
