"""The kinds of model that there are, as methods and audits name them in ``tasks``."""

from __future__ import annotations

CLASSIFIERS = ("image_classifier", "text_classifier", "tabular_classifier")
# One prediction per example.
PREDICTORS = (*CLASSIFIERS, "regressor")
# Whatever has a loss per example: what is a formula over losses serves all of these.
KINDS = ("causal_lm", *PREDICTORS)
