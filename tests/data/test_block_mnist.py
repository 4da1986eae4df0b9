from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from expunge.data import known_sets
from expunge.data.block_mnist import block_images, null_patch
from expunge.errors import BadInput


def test_the_null_patch_is_a_hollow_square() -> None:
    patch = null_patch(28, 1.0)
    assert patch.sum() == 16 * 16 - 12 * 12
    assert patch[14, 14] == 0
    assert patch[6, 6] == 1
    np.testing.assert_array_equal(patch, patch.T)


@pytest.mark.parametrize("signal", ["either", "top", "bottom"])
def test_the_signal_is_where_the_box_says(signal: Any) -> None:
    digits = known_sets.digits("test", noise=0.0).select(range(60))
    blocks = block_images(digits, signal)
    assert blocks["label"] == digits["label"]
    assert len(set(blocks["id"])) == 60
    known = digits.with_format("numpy")["image"]
    null = null_patch(8, 1.0)
    for row, digit in zip(blocks.with_format("numpy"), known, strict=True):
        top, left, bottom, right = row["signal_box"]
        assert (left, right) == (0, 8)
        np.testing.assert_allclose(row["image"][top:bottom], digit)
        np.testing.assert_allclose(row["image"][8 - top : 16 - top], null)
        assert row["group"] == ("bottom" if top else "top")
    share = np.mean([group == "top" for group in blocks["group"]])
    assert share == {"top": 1, "bottom": 0}.get(signal, pytest.approx(0.5, abs=0.2))
    turned = block_images(digits.select(range(59, -1, -1)), signal)
    assert turned["id"] == blocks["id"][::-1]


def test_noise_is_of_the_size_asked_for() -> None:
    digits = known_sets.digits("test", noise=0.0).select(range(40))
    plain, noisy = (np.array(block_images(digits, "top", noise=n)["image"]) for n in (0.0, 0.3))
    assert (noisy - plain).std() == pytest.approx(0.3, rel=0.05)


def test_what_cannot_be_stacked_is_refused(tiny_rows: Any) -> None:
    with pytest.raises(BadInput, match=r"images of shape \(8, 8, 3\)"):
        block_images(tiny_rows("module", range(3)))
    with pytest.raises(BadInput, match="no column 'label'"):
        block_images(known_sets.digits("test").remove_columns(["label"]))
