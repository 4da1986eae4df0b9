"""The layers of a model in the order in which they are built, for methods that treat its end apart."""

from __future__ import annotations

from torch import nn

from expunge.tasks.base import Task


def layers_of(task: Task) -> list[tuple[str, nn.Module]]:
    """Return every module that has parameters of its own, by name, in the model's order; the head comes last.

    Args:
        task: any model.
    """
    found = [
        (name, module)
        for name, module in task.model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    head = task.head_module()
    return [item for item in found if item[1] is not head] + [item for item in found if item[1] is head]


def last_layers(task: Task, count: int) -> dict[str, None]:
    """Return the parameters of the last layers, as a mask that lets them move as a whole.

    Args:
        task: any model.
        count: how many layers; more than there are are all of them.
    """
    modules = [module for _, module in layers_of(task)[-count:]]
    chosen = {id(p) for module in modules for p in module.parameters(recurse=False)}
    return {name: None for name, p in task.named_parameters() if id(p) in chosen}
