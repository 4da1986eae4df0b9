"""How example sets are read for a model with one prediction per example; known without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.errors import BadInput, Problem, collected
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.image_inputs import Augment, ImageInputs
from expunge.tasks.inputs import Inputs, inputs_of
from expunge.tasks.outcomes import Numbers, Outcome, outcome_of
from expunge.tasks.pretrained import config_or_none, outcome_for
from expunge.tasks.storage import stored_settings
from expunge.tasks.text_inputs import TextInputs


@dataclass(frozen=True)
class Reading:
    """What turns examples into inputs and targets.

    Attributes:
        inputs: how examples are put into the model.
        outcome: classes or numbers.
    """

    inputs: Inputs
    outcome: Outcome

    @property
    def kind(self) -> str:
        """The kind of model that is given such inputs and predicts such outcomes."""
        return "regressor" if isinstance(self.outcome, Numbers) else f"{self.inputs.name}_classifier"

    def encode(self, examples: Dataset) -> LabelledExamples:
        """Turn an example set into inputs and targets.

        Raises:
            BadInput: what is wrong with its inputs and with its labels, at once.
        """
        problems: list[Problem] = []
        parts: list[Any] = []
        for part in (self.inputs, self.outcome):
            with collected(problems):
                parts.append(part.encode(examples))
        if problems:
            raise BadInput(problems)
        return LabelledExamples(list(examples["id"][:]), parts[0], parts[1])


def reading_of(
    path: str | Path, *, config: Any = None, max_length: int | None = None, augment: Augment | None = None
) -> Reading:
    """Return how examples are read for the model in a folder or on the hub, from its settings and configuration.

    Args:
        path: the folder or name.
        config: the transformers configuration, if it is at hand.
        max_length: longest text in tokens; by default what the model takes.
        augment: what training changes at random in images; by default what the folder says.

    Raises:
        BadInput: damaged settings, or a text model without a tokenizer.
    """
    stored: Mapping[str, Any] = stored_settings(Path(path))
    config = config or config_or_none(path)
    inputs: Inputs
    if "inputs" in stored:
        inputs = inputs_of(stored["inputs"], Path(path))
    elif any(str(name).endswith("ForSequenceClassification") for name in getattr(config, "architectures", None) or ()):
        inputs = TextInputs.read(path, getattr(config, "max_position_embeddings", None))
    else:
        inputs = ImageInputs.read(Path(path), config.to_dict() if config is not None else {})
    if isinstance(inputs, ImageInputs) and augment is not None:
        inputs = ImageInputs.of({**inputs.settings(), "augment": augment})
    if isinstance(inputs, TextInputs) and max_length is not None:
        inputs.max_length = max_length
    outcome = outcome_of(stored["outcome"]) if "outcome" in stored else outcome_for(config, None)
    return Reading(inputs, outcome)
