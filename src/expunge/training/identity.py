"""What a run is, as a hash: a folder with results of another one must not be continued."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from expunge.tasks.base import Task
from expunge.tasks.examples import EncodedExamples
from expunge.training.checkpoint import kept_buffers
from expunge.training.objective import Stream


def fingerprint(task: Task, streams: Mapping[Stream, EncodedExamples], *given: str) -> str:
    """Hash examples, weights and whatever else decides the outcome; 32 hexadecimal digits.

    Args:
        task: the model before training.
        streams: its encoded examples; their order does not matter.
        given: settings and formulas, as text.
    """
    digest = hashlib.blake2b("\x1f".join(given).encode(), digest_size=16)
    for stream, encoded in streams.items():
        digest.update(stream.encode())
        for i in sorted(range(len(encoded)), key=encoded.ids.__getitem__):
            digest.update(f"{encoded.ids[i]} ".encode() + encoded.content(i))
    for name, parameter in [*task.named_parameters(), *kept_buffers(task.model).items()]:
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
