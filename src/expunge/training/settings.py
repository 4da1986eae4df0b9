"""How to train: every knob of the loop, validated before work starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from expunge.errors import Problem, in_our_words
from expunge.registry import near_names


class Strict(BaseModel):
    """Base of every settings object: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StopSettings(Strict):
    """When to stop, and which checkpoint to keep."""

    every: int = Field(0, ge=0, description="audit a probe subset every N optimiser steps; 0 for never")
    probe_size: PositiveInt = Field(64, description="examples of each set that a probe reads")
    forget_target: Literal["none", "oracle", "holdout"] | float = Field(
        "none",
        description="stop when the forget NLL reaches this level: the oracle's, the holdout's, or nats per token",
    )
    retain_ceiling: PositiveFloat | None = Field(
        None, description="stop when the retain NLL has risen by more than this many nats per token"
    )
    keep: Literal["last", "closest"] = Field(
        "last",
        description="which probe to keep: the last, or the one closest to the forget target within the ceiling",
    )


class LoraSettings(Strict):
    """Train low-rank adapters instead of all weights."""

    rank: PositiveInt = Field(8, description="rank of the adapters")
    alpha: PositiveFloat = Field(16.0, description="scale; the adapter's product is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: str | tuple[str, ...] = Field("all-linear", description="linear layers that get adapters")


class SelectSettings(BaseModel):
    """Let only some weights move. Keys besides ``by`` are settings of that selection, see ``expunge selections``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    by: str = Field("saliency", description="how the weights are chosen; its own settings are select.KEY")


class TrainSettings(Strict):
    """Settings of the training loop. Defaults are open-unlearning's for TOFU (configs/experiment/unlearn/tofu)."""

    epochs: PositiveInt = Field(10, description="passes over the anchor set (the forget set, except for retraining)")
    max_steps: PositiveInt | None = Field(None, description="stop after this many optimiser steps, whatever the epochs")
    batch_size: PositiveInt = Field(32, description="anchor examples per optimiser step, over all processes")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="examples of each stream per forward and process; less needs less memory, results are the same "
        "(but for batch normalisation, which normalises each part by itself)",
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has momentum and couples weight decay")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; adamw has its own")
    learning_rate: PositiveFloat = Field(1e-5, description="peak learning rate")
    weight_decay: float = Field(
        0.01, ge=0, description="weight decay: decoupled with adamw, added to the gradient by sgd"
    )
    warmup: Annotated[float, Field(ge=0, le=1)] | Literal["epoch"] = Field(
        "epoch", description="share of all steps that warm up, or one epoch (at most half of all steps)"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning rate after warm-up")
    clip_norm: PositiveFloat | None = Field(1.0, description="clip the gradient of the trained weights to this norm")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast with full-precision weights")
    share_forward: Literal["auto", "always", "never"] = Field(
        "auto", description="put forget and retain examples through one forward; auto: when padding stays low"
    )
    lora: LoraSettings | None = Field(None, description="train adapters instead of all weights")
    select: SelectSettings | None = Field(None, description="let only some weights move, see `expunge selections`")
    sharding: Literal["none", "fully_shard"] = Field(
        "none", description="split weights, gradients and optimiser state over the processes (torch fully_shard)"
    )
    checkpoint_every: int = Field(0, ge=0, description="write a resumable checkpoint every N steps; 0 for never")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="also log to these accelerate trackers"
    )
    seed: int = Field(0, ge=0, description="everything random follows from it")
    stop: StopSettings = StopSettings()


def wrong_settings(model: type[BaseModel], error: ValidationError, where: str = "") -> list[Problem]:
    """Say in our own words what is wrong with settings, one problem for each.

    Args:
        model: the class of the settings that were to be made.
        error: what it raised.
        where: stands before the dotted name of each setting.
    """
    found: dict[str, tuple[type[BaseModel], list[Any]]] = {}
    for item in error.errors():
        key, owner = _setting_at(model, item["loc"])
        found.setdefault(key, (owner, []))[1].append(item)
    problems = []
    for key, (owner, items) in found.items():
        item = items[0]
        prefix, dot, last = key.rpartition(".")
        if item["type"] == "extra_forbidden":
            known = [f"{prefix}{dot}{name}" for name in owner.model_fields]
            fix = near_names(key, known) if known else "leave it out: there are none"
            problems.append(Problem(f"{where}{key}", "is not a setting", fix))
            continue
        if not item["loc"] and item["type"] == "value_error":  # settings that do not go together: "what -> fix"
            what, _, fix = str(item["ctx"]["error"]).partition(" -> ")
            problems.append(Problem(where.rstrip(": ") or "settings", what, fix or "change one of them"))
            continue
        field = owner.model_fields.get(last)
        about = f" ({field.description})" if field is not None and field.description else ""
        # A value that is none of several kinds is one mistake.
        said = ", or ".join(dict.fromkeys(in_our_words(one["msg"]) for one in items))
        given = "" if item["type"] == "missing" else f" (given: {item['input']!r:.80})"
        problems.append(Problem(f"{where}{key}", f"{said}{given}", f"change it{about}"))
    return problems


def inner_settings(model: type[BaseModel], name: str) -> Iterable[str]:
    """Return the names of the settings inside a setting; none where it is a plain value."""
    inner = _class_in(model, name)
    return () if inner is None else inner.model_fields


def _setting_at(model: type[BaseModel], loc: Sequence[Any]) -> tuple[str, type[BaseModel]]:
    """Return the dotted name of the setting that an error is about, and the class that has it, or lacks it.

    Behind the name of a plain value come pydantic's own words for the members of a union, or a place in a list.
    """
    names: list[str] = []
    for number, part in enumerate(loc):
        names.append(str(part))
        inner = _class_in(model, str(part))
        if inner is None or number == len(loc) - 1:
            break
        model = inner
    return ".".join(names), model


def _class_in(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the class of the settings that a field holds; None where it holds a plain value."""
    field = model.model_fields.get(name)
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
