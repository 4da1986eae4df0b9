"""Which examples of a step go through which forward: dealt to processes, cut into micro-batches, streams joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from expunge.tasks.base import Task
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import EncodedExamples, Positions
from expunge.training.objective import Objective, Stream, Term
from expunge.training.plan import Plan, Step, micro_batches
from expunge.training.settings import TrainSettings

# Streams share a forward on a GPU when that adds at most this much padding.
SHARED_PADDING = 1.1
# Streams that share forwards.
Group = tuple[Stream, ...]
# Per stream, positions in the step.
MicroBatch = Mapping[Stream, Sequence[int]]


class Dealer:
    """Deals the examples of a step; what it decides changes the result by no more than rounding.

    Args:
        task: the model, before adapters are added.
        objective: what is minimised.
        streams: the encoded examples.
        settings: of the run.
        rank, world: this process and how many there are.

    Attributes:
        components: per turn of the objective, streams that share micro-batches, and the terms that read them.
    """

    def __init__(
        self,
        task: Task,
        objective: Objective,
        streams: Mapping[Stream, EncodedExamples],
        settings: TrainSettings,
        rank: int,
        world: int,
    ):
        self.task, self.objective, self.streams, self.settings = task, objective, streams, settings
        self.rank, self.world = rank, world
        self.tokens_per_call = task.tokens_per_call
        turns = [objective.turn(k) for k in range(len(objective.turns))]
        self.components = [self._share(turn.components()) for turn in turns]

    def _share(self, components: list[tuple[Group, tuple[Term, ...]]]) -> list[tuple[Group, tuple[Term, ...]]]:
        """Join uncoupled streams into one forward where that is asked for."""
        if self.settings.share_forward == "never":
            return components
        together = components
        if self.settings.share_forward == "auto" and self.task.device.type == "cpu":
            together = [c for c in components if self._cuts_padding(c[0])]
            if not self._alike([stream for group, _ in together for stream in group]):
                return components
        elif self.settings.share_forward == "auto" and self.task.mixes_examples:
            return components  # forget and retain examples must not be normalised together
        if len(together) < 2:
            return components
        streams = tuple(stream for group, _ in together for stream in group)
        whole = (streams, tuple(term for _, terms in together for term in terms))
        return [whole, *(c for c in components if c not in together)]

    def deal(self, step: Step, group: Group, rank: int | None = None) -> list[MicroBatch]:
        """Cut a process's share of a step into micro-batches.

        Args:
            step: the step.
            group: streams that share micro-batches.
            rank: of the process; this one by default.
        """
        count = len(step.examples[group[0]])
        if self._cuts_padding(group):
            each = [(s, p) for s in group for p in range(count)]
            lengths = [self.streams[s].length(step.examples[s][p]) for s, p in each]
            cut = length_batches(lengths, None, overhead=self.tokens_per_call, most=count)
            return [{s: [each[k][1] for k in part if each[k][0] == s] for s in group} for part in cut]
        lengths = [max(self.streams[s].length(step.examples[s][p]) for s in group) for p in range(count)]
        rank = self.rank if rank is None else rank
        dealt = micro_batches(lengths, rank, self.world, self.settings.micro_batch_size)
        return [dict.fromkeys(group, positions) for positions in dealt]

    def used(self, plan: Plan) -> dict[Stream, list[int]]:
        """Return the indices of the examples that this process will see in the whole run, per stream."""
        used: dict[Stream, set[int]] = {s: set() for s in self.streams}
        for number in range(plan.total):
            step = plan.step(number)
            for group, _ in chain(*self.components):
                for chosen in self.deal(step, group):
                    for stream in group:
                        used[stream].update(step.examples[stream][p] for p in chosen[stream])
                # A process without a share of its own stands in with the first example, weighted 0.
                for stream in group:
                    used[stream].add(step.examples[stream][0])
        return {s: sorted(indices) for s, indices in used.items()}

    def joins(self, step: Step, group: Group) -> bool:
        """Whether the streams of a group go through one forward in this step.

        The answer is the same on every process: forwards are collective calls.
        """
        if len(group) == 1 or not self._alike(group):
            return False
        if self._cuts_padding(group):
            return True
        apart = together = 0
        for rank in range(self.world):
            for chosen in self.deal(step, group, rank):
                positions = chosen[group[0]] or [0]
                widths = [max(self.streams[s].length(step.examples[s][p]) for p in positions) for s in group]
                apart += sum(widths) * len(positions)
                together += max(widths) * len(group) * len(positions)
        return together <= SHARED_PADDING * apart

    def sizes(self, step: Step, term: Term, group: Group) -> tuple[list[int], int]:
        """Return the labelled rows of each example, and all read rows, of a term's first stream in the whole step."""
        stream = term.streams[0]
        encoded, chosen = self.streams[stream], step.examples[stream]
        counts = [encoded.labelled(i) for i in chosen]
        if term.positions in ("answer", "label"):
            rows = sum(counts)
        elif term.positions == "attended":
            rows = encoded.rows(chosen, "attended")
        else:
            rows = sum(
                encoded.rows([chosen[p] for p in part[stream]], "all")
                for rank in range(self.world)
                for part in self.deal(step, group, rank)
            )
        return counts, rows

    def reads(self, stream: Stream) -> tuple[Positions, tuple[int, ...], bool]:
        """Return what is read of a stream: rows, block outputs, and whether logits."""
        objective = self.objective
        # Split weights need the whole forward.
        logits = objective.reads_logits(stream) or self.settings.sharding == "fully_shard"
        return objective.positions(stream), objective.blocks(stream), logits

    def _alike(self, streams: Sequence[Stream]) -> bool:
        return len({(*self.reads(s), self.objective.hidden(s)) for s in streams}) == 1

    def _cuts_padding(self, group: Group) -> bool:
        """Whether the examples of a group may be cut by length alone, whatever their streams.

        On a GPU a longer forward costs less than a further one. Terms that read padding or several streams at once may
        depend on what stands together in a micro-batch.
        """
        return (
            (len(group) == 1 or self.settings.share_forward == "auto")
            and self.world == 1
            and self.settings.micro_batch_size is None
            and self.task.device.type == "cpu"
            and not self.task.mixes_examples
            and all(
                term.positions == "answer" and len(term.streams) == 1
                for stream in group
                for term in self.objective.reading(stream)
            )
            and all(weight.per == "step" for weight in self.objective.moving().values())
        )
