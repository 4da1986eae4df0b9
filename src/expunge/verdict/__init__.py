"""From many audits to one calibrated answer with its uncertainty."""

from expunge.verdict.decision import decide
from expunge.verdict.result import Row, Verdict
from expunge.verdict.settings import VerdictSettings

__all__ = ["Row", "Verdict", "VerdictSettings", "decide"]
