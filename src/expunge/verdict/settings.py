"""What the verdict may be told; the defaults were chosen by simulation (docs/verdict.md)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VerdictSettings(BaseModel):
    """Settings of ``decide``; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.05, gt=0, lt=0.5, description="error rate of a wrong claim, after Holm's correction")
    power: float = Field(0.8, gt=0.5, lt=1, description="chance of a decision that the needed n is computed for")
    level: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals shown; the p-values decide")
    margin_fraction: float = Field(
        0.25,
        gt=0,
        lt=0.5,
        description="margin as a share of the gap between the original model and never having known",
    )
    retain_margin_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="share of the retained knowledge that may be lost and still count as kept"
    )
    margin_sd: float = Field(
        2.0, gt=0, description="standard deviations of seed-to-seed variation that the margin must cover"
    )
    assumed_df: float = Field(
        2.0,
        gt=0,
        description="degrees of freedom that the assumption is worth that margin_fraction covers seed noise",
    )
    max_margin_fraction: float = Field(
        0.5, gt=0, lt=1, description="a statistic whose margin would have to be a larger share of the gap cannot tell"
    )
    min_gap_sd: float = Field(
        0.5,
        ge=0,
        description="where seed noise is not measured: smallest gap that tells, in sd between examples",
    )
    minimum_n: int = Field(8, ge=2, description="fewest examples (or groups) that can show equivalence")
    minimum_groups: int = Field(10, ge=3, description="from how many groups on group means are the units")
