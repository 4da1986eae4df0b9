"""The plain form of every objective for language models: what a straightforward implementation of the papers computes.

Each set of examples is padded to its own longest and run separately, logits are made at every position, and a live copy
of the original model gives whatever is needed of it. Two variants:

- ``"plain"``: nothing is computed that is not used. The library's own loss where the term is that loss.
- ``"published"``: as the field's common code base has it (open-unlearning). Every call passes the labels, so that the
  library computes its loss beside the one that is wanted; a KL term runs the student a second time; UNDIAL runs the
  retain set and multiplies by zero; RMU computes gradients for every weight up to its layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.tasks.encoding import Encoded, collate

Variant = Literal["plain", "published"]


@dataclass
class Part:
    """One padded batch: (B, T) ids, mask and labels, -100 where nothing is to be predicted."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    @classmethod
    def of(cls, encoded: Encoded, device: Any) -> Part:
        """Pad a batch."""
        padded = collate(encoded, 0, device)
        labels = torch.full_like(padded.input_ids, -100)
        mask = torch.zeros_like(padded.input_ids)
        for b, (row, first) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
            labels[b, first : len(row)] = torch.from_numpy(row[first:])
            mask[b, : len(row)] = 1
        return cls(padded.input_ids, mask, labels)

    @property
    def counts(self) -> Tensor:
        """(B,) answer tokens."""
        return (self.labels[:, 1:] != -100).sum(1)


class Plain:
    """The plain form of one objective.

    Args:
        model: the model being trained.
        reference: a frozen copy, or None where the objective needs none.
        variant: see above.
        layer: the block that RMU reads.
    """

    def __init__(self, model: Any, reference: Any, variant: Variant, layer: int = 1):
        self.model, self.reference, self.variant, self.layer = model, reference, variant, layer

    # ---- passes ------------------------------------------------------------------------------------------------------

    def run(self, which: Any, part: Part, loss: bool = False, **more: Any) -> Any:
        """Run a model; with ``loss``, or always as published, the library computes its loss too."""
        labels = {"labels": part.labels} if loss or self.variant == "published" else {}
        return which(input_ids=part.ids, attention_mask=part.mask, **labels, **more)

    def token_nll(self, logits: Tensor, part: Part) -> Tensor:
        """(B, T - 1) NLL of the answer tokens, 0 elsewhere."""
        shifted = logits[:, :-1].transpose(1, 2).contiguous() if self.variant == "published" else None
        rows = shifted if shifted is not None else logits[:, :-1].transpose(1, 2)
        return F.cross_entropy(rows, part.labels[:, 1:], ignore_index=-100, reduction="none")

    def sequence_nll(self, part: Part) -> tuple[Tensor, Tensor]:
        """(B,) summed NLL under the model, and under the reference."""
        own = self.token_nll(self.run(self.model, part).logits, part).sum(1)
        with torch.no_grad():
            before = self.token_nll(self.run(self.reference, part).logits, part).sum(1)
        return own, before

    # ---- retain terms ------------------------------------------------------------------------------------------------

    def nll(self, part: Part) -> Tensor:
        """The library's loss."""
        return self.run(self.model, part, loss=True).loss

    def kl(self, part: Part) -> Tensor:
        """KL to the reference over all positions, composed of library calls."""
        if self.variant == "published":
            self.run(self.model, part)  # the retain loss runs the model, then the KL helper runs it again
        with torch.no_grad():
            before = F.log_softmax(self.run(self.reference, part).logits, dim=-1)
        now = F.log_softmax(self.run(self.model, part).logits, dim=-1)
        return F.kl_div(now.flatten(0, 1), before.flatten(0, 1), log_target=True, reduction="batchmean")

    # ---- forget terms ------------------------------------------------------------------------------------------------

    def gradient_ascent(self, forget: Part, **_: Part) -> Tensor:
        """Negated loss."""
        return -self.nll(forget)

    grad_diff = gradient_ascent

    def npo(self, forget: Part, **_: Part) -> Tensor:
        """Log-ratio to the reference through a sigmoid."""
        own, before = self.sequence_nll(forget)
        return -(2 / 0.1) * F.logsigmoid(0.1 * (own - before)).mean()

    def simnpo(self, forget: Part, **_: Part) -> Tensor:
        """Length-normalised NLL through a sigmoid."""
        mean = self.token_nll(self.run(self.model, forget).logits, forget).sum(1) / forget.counts
        return 0.125 * (-(2 / 4.5) * F.logsigmoid(4.5 * mean)).mean()

    def dpo(self, forget: Part, alternative: Part, **_: Part) -> Tensor:
        """Preferred and dispreferred answers, each under both models."""
        lose, lose_before = self.sequence_nll(forget)
        win, win_before = self.sequence_nll(alternative)
        return -(2 / 0.1) * F.logsigmoid(0.1 * ((win_before - win) - (lose_before - lose))).mean()

    altpo = dpo

    def idk(self, alternative: Part, **_: Part) -> Tensor:
        """Loss on refusals."""
        return self.nll(alternative)

    random_label = idk

    def wga(self, forget: Part, **_: Part) -> Tensor:
        """Ascent weighted by probability."""
        nll = self.token_nll(self.run(self.model, forget).logits, forget)
        return -(((-nll).exp().detach() * nll).sum() / forget.counts.sum())

    def satimp(self, forget: Part, **_: Part) -> Tensor:
        """Ascent weighted by saturation and importance."""
        nll = self.token_nll(self.run(self.model, forget).logits, forget)
        p = (-nll).exp().detach()
        return -((p**5 * (1 - p) * nll).sum() / forget.counts.sum())

    def undial(self, forget: Part, retain: Part, **_: Part) -> Tensor:
        """Distillation from lowered logits."""
        student = self.run(self.model, forget).logits[:, :-1]
        with torch.no_grad():
            teacher = self.run(self.reference, forget).logits[:, :-1]
        labels = forget.labels[:, 1:]
        lowered = teacher.scatter_add(2, labels.clamp_min(0)[..., None], torch.full_like(teacher[..., :1], -10.0))
        losses = F.cross_entropy(
            student.flatten(0, 1), lowered.softmax(-1).flatten(0, 1), reduction="none"
        )  # all positions, then the answers'
        loss = (losses * (labels != -100).flatten()).sum() / forget.counts.sum()
        return loss + 0.0 * self.nll(retain) if self.variant == "published" else loss

    def ceu(self, forget: Part, **_: Part) -> Tensor:
        """Cross entropy to the model's own prediction without the answer token."""
        logits = self.run(self.model, forget).logits[:, :-1]
        labels = forget.labels[:, 1:]
        target = logits.detach().scatter(2, labels.clamp_min(0)[..., None], float("-inf")).softmax(-1)
        losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), reduction="none")
        return (losses * (labels != -100).flatten()).sum() / forget.counts.sum()

    def flat(self, forget: Part, alternative: Part, **_: Part) -> Tensor:
        """Total variation between template and true answer, from token probabilities."""
        found = []
        for part in (alternative, forget):
            log_p = F.log_softmax(self.run(self.model, part).logits[:, :-1], dim=-1)
            labels = part.labels[:, 1:]
            p = log_p.gather(-1, labels.clamp_min(0)[..., None])[..., 0].exp() * (labels != -100)
            found.append(p.sum(1) / part.counts)
        return (torch.tanh(found[1]) / 2 - torch.tanh(found[0]) / 2).mean()

    def rmu(self, forget: Part, retain: Part, **_: Part) -> Tensor:
        """Steer a block's output on the forget set, hold it on the retain set."""

        def rows(which: Any, part: Part) -> Tensor:
            return self.run(which, part, output_hidden_states=True).hidden_states[self.layer + 1][:, :-1]

        def loss(hidden: Tensor, target: Tensor, part: Part) -> Tensor:
            squared = (hidden - target).square().mean(-1) * (part.labels[:, 1:] != -100)
            return (squared.sum(1) / part.counts).mean()

        hidden = rows(self.model, forget)
        direction = torch.rand(hidden.shape[-1], generator=torch.Generator().manual_seed(0))
        steer = loss(hidden, 20 * direction / direction.norm(), forget)
        with torch.no_grad():
            before = rows(self.reference, retain)
        return steer + loss(rows(self.model, retain), before, retain)

    def pdu(self, forget: Part, **_: Part) -> Tensor:
        """Squared margin between the largest and the mean logit."""
        logits = self.run(self.model, forget).logits[:, :-1]
        margin = (logits.amax(-1) - logits.mean(-1)).square()
        return (margin * (forget.labels[:, 1:] != -100)).sum() / forget.counts.sum()


def loss_of(plain: Plain, method: str, retain: str, parts: Mapping[str, Part]) -> Tensor:
    """Return the loss of a step: the forget term, and the retain term if the objective has one."""
    terms: Mapping[str, Callable[[Part], Tensor]] = {"nll": plain.nll, "kl": plain.kl}
    loss = getattr(plain, method)(**parts)
    weight = 100.0 if method == "pdu" else 1.0
    return loss + weight * terms[retain](parts["retain"]) if retain in terms else loss
