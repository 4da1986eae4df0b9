"""Reading classifiers and regressors from folders and from the hub: safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_model
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, PreTrainedModel

from expunge.errors import BadInput, Problem
from expunge.tasks.causal_lm import config_of
from expunge.tasks.factories import Factory
from expunge.tasks.outcomes import Classes, Numbers, Outcome, class_names
from expunge.tasks.storage import first_line, quiet

WEIGHTS = "model.safetensors"
# transformers' own words in ``architectures`` for the models that are served, and what loads them.
LOADERS: Mapping[str, Any] = {
    "ForImageClassification": AutoModelForImageClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}


def loader_of(config: Mapping[str, Any]) -> Any:
    """Return the transformers class that loads a model with this configuration, or None where none is served."""
    names = config.get("architectures") or ()
    return next((auto for end, auto in LOADERS.items() for name in names if str(name).endswith(end)), None)


def config_or_none(path: str | Path) -> Any:
    """Return the transformers configuration of a folder or hub name, or None where there is none."""
    try:
        return config_of(path)
    except Exception:  # the library fails in as many ways as files and networks do
        return None


def load_pretrained(path: str | Path) -> PreTrainedModel:
    """Load a transformers model for image or sequence classification.

    Raises:
        BadInput: no such model, or weights that are missing or not safetensors.
    """
    fix = "give a folder with config.json and *.safetensors, or the name of a model on the hub"
    try:
        loader = loader_of(config_of(path).to_dict()) or AutoModelForImageClassification
        with quiet():
            model, info = loader.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except Exception as error:
        raise BadInput(Problem(f"model {path}", f"cannot be loaded: {first_line(error)}", fix)) from error
    # The library fills missing weights with random numbers; a model that is audited must be the one on disk.
    if absent := sorted(info["missing_keys"]):
        what = f"has no weights for {len(absent)} tensor(s): {', '.join(absent[:3])}"
        raise BadInput(Problem(f"model {path}", what, "copy the folder again, or give the model it belongs to"))
    made: PreTrainedModel = model
    return made


def load_module(factory: Factory, folder: Path) -> nn.Module:
    """Make a plain module and give it the weights in a folder.

    Raises:
        BadInput: they are not there, or are another module's.
    """
    model = factory.make(0)
    try:
        load_model(model, str(folder / WEIGHTS))
    except Exception as error:
        fix = f"give the folder that was written with {factory.function}"
        raise BadInput(Problem(str(folder / WEIGHTS), f"cannot be loaded: {first_line(error)}", fix)) from error
    return model.eval()


def outcome_for(model: Any, given: Outcome | Sequence[str] | None) -> Outcome:
    """Return the outcome that is given, made of class names, or what a transformers model (or its
    configuration) says.

    Raises:
        BadInput: nothing is given and the model is a plain module.
    """
    if isinstance(given, Outcome):
        return given
    if given is not None:
        return Classes(tuple(map(str, given)))
    config = model if hasattr(model, "id2label") else getattr(model, "config", None)
    if config is None:
        raise BadInput(Problem("outcome", "is not known of a plain module", "name the classes, or give Numbers"))
    if config.problem_type == "regression" or config.num_labels == 1:
        return Numbers((0.0,) * config.num_labels, (1.0,) * config.num_labels)
    return Classes(class_names(config))
