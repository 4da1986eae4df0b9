"""Reading classifiers and regressors from folders and from the hub: safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_model
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, PreTrainedModel

from expunge.errors import BadInput, Problem
from expunge.tasks.causal_lm import config_of
from expunge.tasks.factories import Factory
from expunge.tasks.outcomes import Classes, Numbers, Outcome, class_names
from expunge.tasks.storage import by, first_line, load_complete

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


def load_pretrained(path: str | Path, **how: Any) -> PreTrainedModel:
    """Load a transformers model for image or sequence classification.

    Args:
        path: folder or hub name.
        how: further options of ``from_pretrained``.

    Raises:
        BadInput: no such model, or weights that are missing, of another shape or not safetensors.
    """

    def not_loaded(error: Exception) -> BadInput:
        fix = "give a folder with config.json and *.safetensors, or the name of a model on the hub"
        return BadInput(Problem(f"model {path}", f"cannot be loaded: {first_line(error)}", fix))

    try:
        loader = loader_of(config_of(path).to_dict()) or AutoModelForImageClassification
    except Exception as error:
        raise not_loaded(error) from error
    return load_complete(loader, path, not_loaded, **how)


def load_module(factory: Factory, folder: Path) -> nn.Module:
    """Make a plain module and give it the weights in a folder.

    Raises:
        BadInput: they are not there, or are another module's.
    """
    model = factory.make(0)
    try:
        load_model(model, str(folder / WEIGHTS))
    except Exception as error:
        raise _not_its_weights(factory, folder, _of_state(error)) from error
    return model.eval()


def check_module(factory: Factory, folder: Path) -> None:
    """Refuse weights in a folder that are not those of the module that a factory makes, without reading them.

    Raises:
        BadInput: weights that are missing or of another shape, or a file that cannot be read.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as stored:
            found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except Exception as error:
        raise _not_its_weights(factory, folder, first_line(error)) from error
    for name, weight in factory.make(0).state_dict().items():
        if name not in found:
            raise _not_its_weights(factory, folder, f"it has no {name}")
        if found[name] != tuple(weight.shape):
            said = f"{name} is {by(found[name])}, and the module's {by(weight.shape)}"
            raise _not_its_weights(factory, folder, said)


def _not_its_weights(factory: Factory, folder: Path, why: str) -> BadInput:
    fix = f"give the folder that was written with {factory.function} and these arguments"
    return BadInput(Problem(str(folder / WEIGHTS), f"cannot be loaded: {why}", fix))


def _of_state(error: Exception) -> str:
    """Return what a module says of weights that are not its own: after a heading, a line for each."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else first_line(error)


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
