"""What is asked: deletion requests, checked before anything is computed."""

from __future__ import annotations

from expunge.requests.preflight import Encoder, preflight
from expunge.requests.request import ROLES, DeletionRequest, Scenario, example_id, request_problems

__all__ = ["ROLES", "DeletionRequest", "Encoder", "Scenario", "example_id", "preflight", "request_problems"]
