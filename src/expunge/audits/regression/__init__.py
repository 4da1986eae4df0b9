"""Audits of regressors."""
