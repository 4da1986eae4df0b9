"""What was spent: forwards, tokens, FLOPs, memory and seconds."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import torch


def peak_memory() -> int:
    """Return the peak memory of this process so far in bytes: GPU memory if CUDA was used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


@dataclass
class Cost:
    """A running account.

    Attributes:
        forwards: calls of the model, each over one padded batch.
        backwards: backward passes.
        decode_steps: calls of the model for one new token per row.
        sequences: sequences put through the model.
        tokens: real tokens put through the model, padding not counted.
        padded_tokens: the same with padding.
        flops: estimated floating-point operations: 2 per weight that takes part in a matrix product and token for a
            forward, twice that for a backward, plus the attention products.
        seconds: wall time of the sections that were measured.
        peak_bytes: highest memory of the process seen at the end of a measured section.
    """

    forwards: int = 0
    backwards: int = 0
    decode_steps: int = 0
    sequences: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        summed = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        summed["peak_bytes"] = max(self.peak_bytes, other.peak_bytes)
        return Cost(**summed)

    def __sub__(self, earlier: Cost) -> Cost:
        spent = {f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)}
        spent["peak_bytes"] = self.peak_bytes
        return Cost(**spent)

    def snapshot(self) -> Cost:
        """Return a copy that later spending does not change."""
        return Cost(**asdict(self))

    def to_dict(self) -> dict[str, float]:
        """Return the account as plain numbers."""
        return asdict(self)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Add the wall time of the enclosed section and note the peak memory at its end."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start
            self.peak_bytes = max(self.peak_bytes, peak_memory())
