"""What one teacher-forced pass tells about an answer; every log-likelihood score is a function of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenScores:
    """Per-token statistics of one answer under one model, over its n labelled tokens.

    Attributes:
        log_prob: [n] log-probability of the true token, in nats.
        mean_log_prob: [n] mean of the log-probability over the vocabulary, ``sum_v p_v log p_v``, in nats.
        var_log_prob: [n] variance of the same, ``sum_v p_v (log p_v)^2 - mean^2``.
        hit: [n] whether the true token is the most probable one.
        ends_with_eos: whether the last token is the end-of-sequence token that was appended.
        text: the answer.
    """

    log_prob: NDArray[np.float64]
    mean_log_prob: NDArray[np.float64]
    var_log_prob: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ends_with_eos: bool
    text: str

    def __len__(self) -> int:
        return len(self.log_prob)

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood in nats per token, end of sequence included; NaN without tokens."""
        return float(-self.log_prob.mean()) if len(self.log_prob) else float("nan")

    @property
    def probability(self) -> float:
        """Length-normalised answer probability ``exp(-nll)``."""
        return float(np.exp(-self.nll))

    @property
    def content(self) -> slice:
        """The tokens without the appended end-of-sequence token."""
        return slice(0, len(self.log_prob) - 1 if self.ends_with_eos else len(self.log_prob))
