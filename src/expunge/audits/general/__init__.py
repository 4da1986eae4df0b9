"""Audits that do not depend on the kind of model."""
