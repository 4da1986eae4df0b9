"""Which examples meet in which step: a pure function of seed, epoch and example ids.

Order of files, workers, processes and a resumed run cannot change it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.errors import BadInput, Problem
from expunge.tasks.examples import EncodedExamples
from expunge.training.objective import Stream

# A window of this many batches, but of no more than half an epoch, is sorted by length before it is cut into batches:
# sorting a whole epoch would put the same examples together in every epoch and under every seed.
WINDOW = 8


def draw(*key: object) -> int:
    """Return a 64-bit number that depends on the key alone."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Step:
    """One optimiser step: for each stream, the indices of its examples."""

    number: int
    epoch: int
    examples: Mapping[Stream, Sequence[int]]


def epoch_batches(encoded: EncodedExamples, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Cut one epoch into batches of similar length.

    Examples are shuffled by a hash of (seed, epoch, id); windows of up to eight batches are sorted by length and cut;
    the batches are shuffled again.
    """
    shuffled = sorted(range(len(encoded)), key=lambda i: (draw(seed, epoch, encoded.ids[i]), encoded.ids[i]))
    batches: list[list[int]] = []
    window = batch_size * max(1, min(WINDOW, math.ceil(len(shuffled) / batch_size) // 2))
    for start in range(0, len(shuffled), window):
        part = sorted(shuffled[start : start + window], key=lambda i: (encoded.length(i), encoded.ids[i]))
        batches += [part[k : k + batch_size] for k in range(0, len(part), batch_size)]
    return sorted(batches, key=lambda batch: draw(seed, epoch, "batch", encoded.ids[batch[0]]))


def partners(anchor: EncodedExamples, batch: Sequence[int], ranked: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Draw for every anchor example one partner, uniformly with replacement, by (seed, epoch, anchor id).

    Args:
        anchor: the anchor stream.
        batch: indices of the anchor examples.
        ranked: indices of the pool in the order of its ids.
        seed, epoch: of the draw.
    """
    return [ranked[draw(seed, epoch, anchor.ids[i], "partner") % len(ranked)] for i in batch]


ALTERNATIVE = "#"


def own_alternatives(anchor: EncodedExamples, pool: EncodedExamples) -> dict[str, list[int]]:
    """Find for every anchor example its own entries in a pool, by their ids ``<anchor id>#<anything>``, sorted.

    Raises:
        BadInput: some anchor example has none.
    """
    own: dict[str, list[int]] = {identity: [] for identity in anchor.ids}
    for index in sorted(range(len(pool)), key=lambda i: pool.ids[i]):
        own.setdefault(pool.ids[index].rpartition(ALTERNATIVE)[0], []).append(index)
    missing = [identity for identity in anchor.ids if not own[identity]]
    if missing:
        what = f"{len(missing)} example(s) have none, such as {missing[0]}"
        raise BadInput(Problem("alternative answers", what, "give at least one per example to forget"))
    return own


class Plan:
    """All steps of a run.

    The stream "alternative" holds other answers to the anchor's questions: each anchor example meets one of its own,
    drawn by (seed, epoch, id). Every other stream supplies partners from all of it.

    Args:
        streams: the encoded examples, the anchor among them.
        anchor: the stream that is passed over once per epoch.
        batch_size: anchor examples per step.
        epochs: passes.
        max_steps: cut the run after this many steps.
        seed: of the shuffles and partners.
    """

    def __init__(
        self,
        streams: Mapping[Stream, EncodedExamples],
        anchor: Stream,
        *,
        batch_size: int,
        epochs: int,
        max_steps: int | None,
        seed: int,
    ):
        self.streams, self.anchor, self.seed, self.batch_size = streams, anchor, seed, batch_size
        self.steps_per_epoch = math.ceil(len(streams[anchor]) / batch_size)
        self.total = min(epochs * self.steps_per_epoch, max_steps or 10**12)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        # In the order of ids, so that the order in which a stream was read does not matter.
        self._ranked = {s: sorted(range(len(e)), key=e.ids.__getitem__) for s, e in streams.items()}
        self._own = own_alternatives(streams[anchor], streams["alternative"]) if "alternative" in streams else {}

    def step(self, number: int) -> Step:
        """Return step ``number``, counted from 0."""
        epoch, position = divmod(number, self.steps_per_epoch)
        anchor = self.streams[self.anchor]
        if self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_batches(anchor, self.batch_size, self.seed, epoch))
        batch = self._epoch[1][position]
        examples: dict[Stream, Sequence[int]] = {self.anchor: batch}
        for name in self.streams:
            if name == "alternative":
                examples[name] = [self._alternative(anchor.ids[i], epoch) for i in batch]
            elif name != self.anchor:
                examples[name] = partners(anchor, batch, self._ranked[name], self.seed, epoch)
        return Step(number, epoch, examples)

    def _alternative(self, identity: str, epoch: int) -> int:
        own = self._own[identity]
        return own[draw(self.seed, epoch, identity, "alternative") % len(own)]


def micro_batches(lengths: Sequence[int], rank: int, world: int, size: int | None) -> list[list[int]]:
    """Deal the positions of a step to a process and cut its share into micro-batches of similar length.

    Every process gets the same number of micro-batches, some of them possibly empty, because collective operations
    must match.

    Args:
        lengths: tokens at each position of the step (the longest of its streams where several share a forward).
        rank, world: this process and how many there are.
        size: examples per micro-batch; all of the share if None.
    """
    ordered = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    size = size or math.ceil(len(ordered) / world)
    count = math.ceil(len(ordered) / (world * size))
    mine = ordered[rank::world]
    return [mine[k * size : (k + 1) * size] for k in range(count)]


def learning_rate_factor(step: int, total: int, warmup_steps: int, schedule: str) -> float:
    """Return the factor on the peak learning rate at a step (0-based)."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1.0 - progress
