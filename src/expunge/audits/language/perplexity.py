"""Perplexity on running text: is the model still a language model?

Source: Jelinek et al. 1977; windows as is usual for models of limited context: each token is scored once, with at
least ``window - stride`` tokens before it where the text has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import statistic_interval
from expunge.audits.observations import Observations

Array = NDArray[np.float64]


def perplexity(log_probs: Sequence[Array]) -> float:
    """Return ``exp`` of the mean NLL over all tokens of all windows; NaN without tokens, infinite above e^700."""
    tokens = sum(map(len, log_probs))
    if not tokens:
        return float("nan")
    nll = -sum(float(row.sum()) for row in log_probs) / tokens
    return math.exp(nll) if nll < 700 else math.inf


class Perplexity(Audit):
    """Perplexity per model on a text file, with an interval over windows."""

    id = "perplexity"
    title = "Is the model still fluent on ordinary text?"
    default = False
    paper = "Jelinek et al. 1977, Perplexity: a measure of the difficulty of speech recognition tasks"

    class Config(AuditConfig):
        """Settings of the perplexity audit."""

        text: Path | None = Field(None, description="UTF-8 text file to read; without one there is nothing to measure")
        window: int = Field(512, ge=2, description="tokens per forward pass, cut to the model's own limit")
        stride: int = Field(256, ge=1, description="tokens by which the window advances, below its length")
        characters: int = Field(200_000, ge=1, description="how much of the file to read, from its beginning")

        @field_validator("text")
        @classmethod
        def _is_text(cls, path: Path | None) -> Path | None:
            if path is not None and not path.is_file():
                raise ValueError(f"'{path}' is not a file; give a UTF-8 text file")
            return path

        @model_validator(mode="after")
        def _advances(self) -> Perplexity.Config:
            if self.stride >= self.window:
                raise ValueError(f"stride {self.stride} is not below window {self.window}: tokens would be skipped")
            return self

    def run(self, seen: Observations) -> Finding:
        if self.config.text is None:
            return Finding(self.id, "no data", note="no text was given (set text=FILE)")
        with self.config.text.open(encoding="utf-8") as file:
            text = file.read(self.config.characters)
        estimates: dict[str, dict[str, Estimate]] = {}
        windows = {}
        for model, task in seen.models.items():
            window = min(self.config.window, task.encoder.max_length or self.config.window)
            rows = seen.text_scores(model, text, window, min(self.config.stride, window - 1))
            windows[model] = {"window": window, "tokens": sum(map(len, rows))}
            if not windows[model]["tokens"]:
                return Finding(self.id, "no data", note=f"{self.config.text.name} holds no text to score")
            estimates[model] = {
                "perplexity": _interval(rows, seen.seed),
                "tokens": Estimate(float(sum(map(len, rows)))),
            }
        return Finding(
            self.id,
            scalars=[
                Scalar("perplexity", f"Perplexity on {self.config.text.name}", "perplexity", digits=2),
                Scalar("tokens", "Tokens scored", "tokens", digits=0),
            ],
            estimates=estimates,
            attempted={"text": self.config.text.name, "characters": len(text), "models": windows},
        )


def _interval(rows: Sequence[Array], seed: int) -> Estimate:
    """Resample windows, because neighbouring tokens are not independent."""
    kept = [row for row in rows if len(row)]
    index = np.arange(len(kept), dtype=float)
    sums, sizes = np.array([row.sum() for row in kept]), np.array([len(row) for row in kept])

    def function(parts: Mapping[str, Array]) -> float:
        chosen = parts["windows"].astype(int)
        return float(np.exp(-sums[chosen].sum() / sizes[chosen].sum()))

    estimate = statistic_interval({"windows": index.tolist()}, function, seed=seed, resamples=1000)
    return Estimate(perplexity(kept), estimate.low, estimate.high, estimate.n, estimate.level, estimate.note)
