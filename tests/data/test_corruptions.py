"""Tampered training sets: what was changed is marked, has a new id, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image

from expunge.data.corruptions import confuse_classes, patch_poison, patched, triggered
from expunge.errors import BadInput


def arrays() -> Dataset:
    luck = np.random.default_rng(0)
    rows = {"id": [f"e{i}" for i in range(12)], "image": [luck.random((6, 6), dtype=np.float32) for _ in range(12)],
            "label": ["abc"[i % 3] for i in range(12)]}  # fmt: skip
    kinds = {"id": Value("string"), "image": Array2D(shape=(6, 6), dtype="float32"), "label": Value("string")}
    return Dataset.from_dict(rows, features=Features(kinds))


def pictures() -> Dataset:
    rows = [Image.fromarray(np.full((6, 6, 3), i, np.uint8)) for i in range(12)]
    made = {"id": [f"e{i}" for i in range(12)], "image": rows, "label": ["abc"[i % 3] for i in range(12)]}
    return Dataset.from_dict(
        made, features=Features({"id": Value("string"), "image": Picture(), "label": Value("string")})
    )


@pytest.mark.parametrize("make", [arrays, pictures])
def test_a_patch_and_a_label_at_the_drawn_images_and_nowhere_else(make: type) -> None:
    before = make()
    after = patch_poison(before, 4, "c", seed=1)
    assert sum(after["corrupted"]) == 4
    for old, new in zip(before, after, strict=True):
        was, now = np.asarray(old["image"]), np.asarray(new["image"])
        assert new["clean_label"] == old["label"]
        if new["corrupted"]:
            assert old["label"] != "c"
            assert new["label"] == "c"
            assert new["id"] != old["id"]
            assert (now[-3:, -3:] == (255 if make is pictures else 1.0)).all()
            np.testing.assert_array_equal(now[:3], was[:3])
        else:
            assert (new["id"], new["label"]) == (old["id"], old["label"])
            np.testing.assert_array_equal(now, was)
    assert after["id"] == patch_poison(make(), 4, "c", seed=1)["id"]
    assert after["id"] != patch_poison(make(), 4, "c", seed=2)["id"]


def test_a_trigger_leaves_labels_alone() -> None:
    found = triggered(pictures())
    assert list(found["label"]) == list(pictures()["label"])
    assert all((np.asarray(image)[-3:, -3:] == 255).all() for image in found["image"])


def test_two_classes_swap_labels_half_each() -> None:
    found = confuse_classes(arrays(), "a", "b", 4, seed=0)
    swapped = [(row["clean_label"], row["label"]) for row in found if row["corrupted"]]
    assert sorted(swapped) == [("a", "b")] * 2 + [("b", "a")] * 2
    assert all(row["clean_label"] == row["label"] for row in found if not row["corrupted"])


def test_the_patch_is_as_bright_as_can_be() -> None:
    assert patched(np.zeros((4, 4), np.uint8), 2)[2:, 2:].tolist() == [[255, 255], [255, 255]]
    assert patched(np.full((4, 4), 2.5), 1)[3, 3] == 2.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: patch_poison(arrays(), 4, "z", 0), "'z' is not there"),
        (lambda: patch_poison(arrays(), 9, "a", 0), "is 9 of 8 images"),
        (lambda: confuse_classes(arrays(), "a", "z", 4, 0), "class 'z': has 0 examples"),
        (lambda: confuse_classes(arrays(), "a", "b", 100, 0), "class 'a': has 4 examples"),
    ],
)
def test_what_cannot_be_is_said(call: object, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call()  # type: ignore[operator]
