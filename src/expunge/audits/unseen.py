"""Which examples no model was trained on, told apart into those like the forget set and the test set of the field.

In the field's tables, test accuracy is over the classes that are kept when a class is forgotten; unseen examples of
that class are a set of their own. A request has one holdout set; a further role ``test`` may be given beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from expunge.audits.observations import Observations
from expunge.tasks.predictions import Predictions, joined

TEST = "test"


def _is_there(path: Path | None) -> Path | None:
    if path is not None and not path.expanduser().exists():
        raise ValueError(f"'{path}' is not there; give a file or folder of labelled examples")
    return path


# A setting that names a test set; a wrong name is found before any work.
TestSet = Annotated[Path | None, AfterValidator(_is_there)]
NO_TEST = "no unseen examples beyond those to forget; give a test set (audits.accuracies.test)"


def add_test_set(seen: Observations, path: Path | None) -> None:
    """Read a test set and make it known to all audits, unless there is one already.

    Raises:
        BadInput: it cannot be read.
    """
    if path is None or TEST in seen.examples.roles:
        return
    from expunge.data.labelled import read_labelled

    inputs = next(iter(seen.models.values())).inputs.name
    seen.examples.add(TEST, read_labelled(path, inputs, duplicates="drop", role=TEST))


def unseen_sets(seen: Observations, model: str) -> tuple[Predictions | None, Predictions | None]:
    """Return what a model predicts for unseen examples.

    Args:
        seen: the observations; their roles ``holdout`` and ``test`` were not trained on.
        model: name of the model.

    Returns:
        The test set, and the unseen examples like those to forget; None where there are none. When a class is to be
        forgotten, labels divide them. When a group or a range is, the holdout set is like it and only ``test`` is the
        test set. Otherwise unseen examples are all alike and there is no second part.
    """
    parts = {role: seen.predictions(model, role) for role in ("holdout", TEST) if role in seen.examples.roles}
    if not parts:
        return None, None
    scenario = seen.request.scenario
    if scenario in ("group", "range"):
        return parts.get(TEST), parts.get("holdout")
    known = set(parts[TEST].ids) if TEST in parts else set()
    if known and "holdout" in parts:
        rest = parts["holdout"]
        parts["holdout"] = rest.take([k for k, i in enumerate(rest.ids) if i not in known])
    everything = joined([part for part in parts.values() if len(part)])
    if scenario != "class":
        return everything, None
    gone = np.isin(everything.targets, np.unique(seen.predictions(model, "forget").targets))
    sides = (everything.take(np.flatnonzero(~gone)), everything.take(np.flatnonzero(gone)))
    return sides[0] if len(sides[0]) else None, sides[1] if len(sides[1]) else None
