"""Audits of models with one prediction per example: classifiers and regressors."""
