"""Easiest forget sets: the examples that are mispredicted as soon as they are unlearned."""

from __future__ import annotations

from typing import ClassVar

from expunge.forget_sets.worst_case import WorstCase


class Easiest(WorstCase):
    """The units that a model unlearned without them fits worst: the search of ``worst_case`` with the sign turned.

    What is found are the examples that the model knew only because it saw them.
    """

    id = "easiest"
    title = "what is mispredicted as soon as it is unlearned (bi-level search)"
    easiest: ClassVar[bool] = True
