"""Images: read once as small integers, scaled per batch, flipped and shifted only for training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as Picture
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.requests.places import own_columns, place, some
from expunge.tasks.inputs import Inputs

Augment = Literal["none", "flip", "shift", "flip_shift"]
PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageInputs(Inputs):
    """Images from the column ``image``: pictures (``datasets.Image``) or arrays, height x width (x channels).

    Whole numbers are taken as 0 to 255 and divided by 255; floating-point pixels are used as they are.

    Attributes:
        channels: 1 or 3; pictures are converted, and arrays of one channel repeated for a model of three.
        size: (height, width) to which pictures of another size are resized; None refuses mixed sizes.
        mean, std: per channel, subtracted and divided by after scaling.
        augment: what training changes at random: "flip" left and right, "shift" by up to ``padding`` pixels.
        padding: zeros around an image before it is shifted.
    """

    channels: int = 3
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Augment = "none"
    padding: int = 4

    name: ClassVar[str] = "image"
    column: ClassVar[str] = "image"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ImageInputs:
        """Return inputs from plain values.

        Raises:
            BadInput: a value that is out of range.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known}
        made = cls(**values)
        wide = {len(made.mean), len(made.std)} <= {1, made.channels}
        if made.channels not in (1, 3) or not wide or min(made.std) <= 0 or made.augment not in Augment.__args__:  # type: ignore[attr-defined]
            raise BadInput(Problem("image settings", f"are {dict(settings)}", "give 1 or 3 channels and std above 0"))
        return made

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> ImageInputs:
        """Return the inputs of a transformers model from its processor's file and its configuration."""
        try:
            stored = json.loads((folder / PROCESSOR).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stored = {}
        channels = int(config.get("num_channels", 3))
        size = stored.get("size") or config.get("image_size")
        if isinstance(size, dict):
            size = [size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))]
        if isinstance(size, int):
            size = [size, size]
        normal = stored.get("do_normalize", bool(stored))
        return cls.of(
            {
                "channels": channels,
                "size": tuple(size) if size and all(size) else None,
                "mean": stored.get("image_mean", [0.5] * channels) if normal else (0.0,),
                "std": stored.get("image_std", [0.5] * channels) if normal else (1.0,),
            }
        )

    # ---- reading ---------------------------------------------------------------------------------------------------

    def encode(self, examples: Dataset) -> Tensor:
        """Return (N, C, H, W) uint8 pixels, or float32 where the examples hold floating-point numbers."""
        if self.column not in examples.column_names:
            found = own_columns(examples)
            raise BadInput(Problem("column 'image'", f"is not there; there are {found}", "name the images 'image'"))
        faults: dict[str, list[int]] = {}
        arrays: list[NDArray[Any]] = []
        # Arrays come whole from memory; pictures are decoded one by one.
        pictures = isinstance(examples.features[self.column], Picture)
        given = (
            examples[self.column] if pictures else examples.with_format("numpy", columns=[self.column])[:][self.column]
        )
        for index, value in enumerate(given):
            array = self._array(value)
            wrong = array if isinstance(array, str) else _wrong(array)
            if wrong:
                faults.setdefault(wrong, []).append(index)
            else:
                assert not isinstance(array, str)
                arrays.append(array)
        sizes = {array.shape[1:] for array in arrays}
        show = partial(place, examples)
        problems = [
            Problem("column 'image'", f"{len(at)} image(s) {what}: {some(at, show)}", "correct them or leave them out")
            for what, at in faults.items()
        ]
        if len(sizes) > 1:
            shown = some(sorted(sizes), lambda s: f"{s[0]}x{s[1]}")
            what = f"holds images of mixed size: {shown} (height x width)"
            problems.append(Problem("column 'image'", what, "resize them, or give the model a size to resize to"))
        if problems:
            raise BadInput(problems)
        whole = all(array.dtype == np.uint8 for array in arrays)
        pixels = np.stack(arrays)
        if not whole and any(array.dtype == np.uint8 for array in arrays):
            what = "holds whole numbers in some images and fractions in others, which are on two scales"
            raise BadInput(Problem("column 'image'", what, "give all of them as 0..255 or all as fractions"))
        return torch.from_numpy(pixels if whole else pixels.astype(np.float32))

    def _array(self, value: Any) -> NDArray[Any] | str:
        """Return (C, H, W) pixels, or what is wrong with an image."""
        if isinstance(value, Image.Image):
            if value.mode[0] in "IF":
                return f"have pixels of more than 8 bits (mode {value.mode}), which conversion would cut off at 255"
            picture = value.convert("RGB" if self.channels == 3 else "L")
            if self.size is not None and (picture.height, picture.width) != self.size:
                picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
            array: NDArray[Any] = np.asarray(picture)
        else:
            try:
                array = np.asarray(value)
            except ValueError:
                return "have rows of different length"
        if array.ndim == 2:
            array = array[:, :, None]
        if array.ndim != 3 or array.dtype.kind not in "uif":
            return "are not height x width (x channels) of numbers"
        if array.shape[2] == 1 and self.channels == 3:
            array = array.repeat(3, axis=2)
        if array.shape[2] != self.channels:
            return f"have {array.shape[2]} channels where the model takes {self.channels}"
        if array.dtype.kind in "ui":
            if array.size and (array.min() < 0 or array.max() > 255):
                return "have whole-number pixels outside 0 to 255"
            array = array.astype(np.uint8)
        if self.size is not None and array.shape[:2] != self.size:
            return f"are {array.shape[0]}x{array.shape[1]} where the model takes {self.size[0]}x{self.size[1]}"
        return np.ascontiguousarray(array.transpose(2, 0, 1))

    # ---- batches ---------------------------------------------------------------------------------------------------

    def batch(self, inputs: Tensor | Sequence[Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return (B, C, H, W) float32 pixels, normalised."""
        assert isinstance(inputs, Tensor)
        pixels = inputs.to(device)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        mean, std = (torch.tensor(v, device=device).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return {"pixel_values": (pixels - mean) / std}

    @property
    def varies(self) -> bool:
        """Whether training sees changed images."""
        return self.augment != "none"

    def vary(self, inputs: Tensor | Sequence[Tensor], ids: Sequence[str], seed: int) -> Tensor:
        """Flip and shift each image as (seed, id) says, so that the other images of a batch do not matter."""
        assert isinstance(inputs, Tensor)
        if not self.varies:
            return inputs
        height, width, pad = inputs.shape[-2], inputs.shape[-1], self.padding
        padded = torch.nn.functional.pad(inputs, (pad, pad, pad, pad)) if "shift" in self.augment else inputs
        out = torch.empty_like(inputs)
        for i, identity in enumerate(ids):
            luck = hashlib.blake2b(f"{seed}\x1f{identity}".encode(), digest_size=8).digest()
            image = padded[i]
            if "shift" in self.augment:
                top, left = (int.from_bytes(luck[a : a + 2], "big") % (2 * pad + 1) for a in (0, 2))
                image = image[:, top : top + height, left : left + width]
            out[i] = image.flip(-1) if "flip" in self.augment and luck[4] & 1 else image
        return out

    # ---- storing ---------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {"kind": self.name, **asdict(self)}

    def save(self, folder: Path) -> None:
        """Write the processor's file, so that other tools scale images as we do."""
        size = {} if self.size is None else {"size": {"height": self.size[0], "width": self.size[1]}}
        wide = [list(v) * (self.channels // len(v)) for v in (self.mean, self.std)]
        processor = {
            "image_processor_type": "ViTImageProcessor",
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": wide[0],
            "image_std": wide[1],
            "do_resize": bool(size),
            **size,
        }
        (folder / PROCESSOR).write_text(json.dumps(processor, indent=2), encoding="utf-8")


def _wrong(array: NDArray[Any]) -> str | None:
    if not array.size:
        return "are empty"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "have pixels that are NaN or infinite"
    return None
