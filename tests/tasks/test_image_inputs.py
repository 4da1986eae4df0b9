"""Images: read alike from pictures and arrays, scaled per batch, varied only on request and by (seed, id)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image

from expunge.errors import BadInput
from expunge.tasks.image_inputs import ImageInputs

LUCK = np.random.default_rng(0)
PIXELS = LUCK.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def pictures(arrays: list[np.ndarray]) -> Dataset:
    return Dataset.from_dict({"image": [Image.fromarray(a) for a in arrays]}, features=Features({"image": Picture()}))


def test_pictures_lists_and_arrays_come_to_the_same() -> None:
    kinds = Features({"image": Array3D(shape=(6, 5, 3), dtype="uint8")})
    sources = [
        pictures(list(PIXELS)),
        Dataset.from_dict({"image": PIXELS.tolist()}),
        Dataset.from_dict({"image": list(PIXELS)}, features=kinds),
    ]
    for source in sources:
        encoded = ImageInputs().encode(source)
        assert encoded.dtype == torch.uint8
        np.testing.assert_array_equal(encoded.numpy(), PIXELS.transpose(0, 3, 1, 2))


def test_grey_images_serve_colour_models_and_the_other_way_round() -> None:
    grey = ImageInputs().encode(pictures([PIXELS[0, :, :, 0]]))
    assert grey.shape == (1, 3, 6, 5)
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert ImageInputs(channels=1).encode(pictures([PIXELS[0]])).shape == (1, 1, 6, 5)


def test_batches_are_scaled_and_normalised() -> None:
    inputs = ImageInputs(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0))
    pixels = inputs.encode(pictures(list(PIXELS)))
    batch = inputs.batch(pixels, torch.device("cpu"))["pixel_values"]
    expected = (PIXELS.transpose(0, 3, 1, 2) / 255 - np.array([0.5, 0.25, 0])[:, None, None]) / np.array([0.5, 0.5, 2])[
        :, None, None
    ]
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-6)
    fractions = torch.tensor([[[[0.5]]]])
    assert ImageInputs(channels=1).batch(fractions, torch.device("cpu"))["pixel_values"].item() == 0.5


def test_pictures_of_another_size_are_resized_only_where_the_model_says_so() -> None:
    mixed = pictures([PIXELS[0], PIXELS[1, :4]])
    with pytest.raises(BadInput, match="mixed size: 4x5; 6x5"):
        ImageInputs().encode(mixed)
    assert ImageInputs(size=(7, 8)).encode(mixed).shape == (2, 3, 7, 8)


def test_variation_depends_on_seed_and_id_alone() -> None:
    inputs = ImageInputs(augment="flip_shift", padding=2)
    pixels, ids = inputs.encode(pictures(list(PIXELS))), ["a", "b", "c", "d"]
    together = inputs.vary(pixels, ids, 7)
    alone = torch.cat([inputs.vary(pixels[i : i + 1], ids[i : i + 1], 7) for i in range(4)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, inputs.vary(pixels, ids, 8))
    assert torch.equal(ImageInputs().vary(pixels, ids, 7), pixels)


def test_flips_and_shifts_are_what_they_are_called() -> None:
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 1] = 9
    flipped = {
        tuple(ImageInputs(channels=1, augment="flip").vary(image, ["x"], seed)[0, 0].nonzero()[0].tolist())
        for seed in range(20)
    }
    assert flipped == {(2, 1), (2, 3)}
    shifted = {
        tuple(ImageInputs(channels=1, augment="shift", padding=1).vary(image, ["x"], seed)[0, 0].nonzero()[0].tolist())
        for seed in range(80)
    }
    assert shifted == {(y, x) for y in (1, 2, 3) for x in (0, 1, 2)}


def test_settings_and_the_processors_file_say_the_same(tmp_path: Path) -> None:
    inputs = ImageInputs(channels=3, size=(8, 8), mean=(0.1,), std=(0.2, 0.3, 0.4), augment="flip")
    assert ImageInputs.of(json.loads(json.dumps(inputs.settings()))) == inputs
    inputs.save(tmp_path)
    read = ImageInputs.read(tmp_path, {"num_channels": 3})
    assert (read.size, read.mean, read.std) == ((8, 8), (0.1, 0.1, 0.1), (0.2, 0.3, 0.4))
    assert read.augment == "none"


@pytest.mark.parametrize("settings", [{"channels": 2}, {"std": [0.0]}, {"augment": "blur"}, {"mean": [0.1, 0.2]}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="image settings"):
        ImageInputs.of(settings)


def test_pixels_of_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    deep = Dataset.from_dict(
        {"id": ["a"], "image": [Image.fromarray(np.full((6, 5), 1000, np.uint16))]},
        features=Features({"id": Value("string"), "image": Picture()}),
    )
    with pytest.raises(BadInput, match=r"1 image\(s\) have pixels of more than 8 bits \(mode I;16\)"):
        ImageInputs(channels=1).encode(deep)
