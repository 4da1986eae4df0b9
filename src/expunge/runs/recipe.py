"""A recipe: everything that a run depends on, in one validated value that can be written down and run again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from expunge.errors import BadInput, Problem, in_our_words
from expunge.registry import near_names
from expunge.requests.request import Scenario

_NO_METHOD = "audit judges a model however it was made; take this out"
MISSING = "is missing"
Role = Annotated[str, Field(pattern="^(forget|retain|holdout)$")]
Command = Literal["unlearn", "audit"]
# Parts of a recipe that a command does not use, and why.
UNUSED: Mapping[Command, Mapping[str, str]] = {
    "unlearn": {"original": "the model is the original; take this out"},
    "audit": {"method": _NO_METHOD, "settings": _NO_METHOD},
}
# What the key of ``--set`` may start with besides a setting of the method or of training.
SECTIONS = {
    "audits": "audit_settings",
    "verdict": "verdict",
    "limits": "audit_limits",
    "columns": "columns",
    "splits": "splits",
}


class Recipe(BaseModel):
    """What to forget from what, how, and how to prove it. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    name: str = Field("request", min_length=1, description="a label for reports")
    model: str = Field(min_length=1, description="folder or hub name of the model (for `audit`: the one to judge)")
    forget: str = Field(min_length=1, description="examples to delete: a file, a folder or a hub name")
    retain: str | None = Field(None, description="examples whose knowledge must stay")
    holdout: str | None = Field(None, description="examples like the forget set that the model never saw")
    original: str | None = Field(None, description="for `audit` only: the model before unlearning")
    oracle: tuple[str, ...] = Field((), description="models trained without the forget set")
    method: str = Field("npo", description="how to forget, see `expunge methods`")
    settings: dict[str, Any] = Field({}, description="settings of the method and of training")
    audits: tuple[str, ...] | None = Field(None, description="which audits to run; all default ones if left out")
    audit_settings: dict[str, dict[str, Any]] = Field({}, description="audit -> setting -> value")
    audit_limits: dict[Role, PositiveInt] = Field(
        {}, description="most examples of a set that audits read; by default all to forget, and of the others as many"
    )
    verdict: dict[str, Any] = Field({}, description="error rate and margins of the verdict")
    scenario: Scenario = Field("examples", description="what kind of thing is to be forgotten")
    columns: dict[str, str] = Field({}, description="canonical column -> its name in the files")
    splits: dict[Role, str] = Field({}, description="set -> its split, where its source has several")
    duplicates: Literal["refuse", "drop"] = Field("refuse", description="what to do with examples that repeat")
    template: str | None = Field(None, description="how prompt and answer are joined, such as '{prompt} {answer}'")
    chat: Literal["auto", "always", "never"] | None = Field(None, description="use of the tokenizer's chat template")
    max_length: PositiveInt | None = Field(None, description="longest example in tokens; the model's limit if left out")
    factory: str | None = Field(
        None, description="module:function that made a plain torch module; its code is run, so name only what you trust"
    )
    augment: Literal["none", "flip", "shift", "flip_shift"] | None = Field(
        None, description="what training changes at random in images; what the model's folder says if left out"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the weights")
    device: str = Field("auto", description="cpu, cuda, cuda:1; auto takes a GPU if there is one")
    seed: int = Field(0, ge=0, description="everything random follows from it")

    def to_dict(self, command: Command) -> dict[str, Any]:
        """Return the recipe as plain values, every key in it that the command uses."""
        return self.model_dump(mode="json", exclude=set(UNUSED[command]))


def to_yaml(recipe: Mapping[str, Any]) -> str:
    """Return the plain values of a recipe as YAML that ``read_recipe`` reads back to an equal recipe."""
    return str(yaml.dump(dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def read_recipe(
    file: str | Path | None = None,
    given: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    command: Command = "unlearn",
) -> Recipe:
    """Put a recipe together.

    Args:
        file: YAML file; None for none.
        given: fields that win over the file; None and empty values count as not given.
        overrides: ``key=value``, values as in YAML. A key is a setting of the method or of training ("beta",
            "stop.every"), "audits.NAME.KEY", "verdict.KEY", "limits.ROLE", "columns.NAME" or "splits.ROLE". They
            win over both.
        command: what the recipe is for; parts that it does not use are refused, so that nothing is silently ignored.

    Returns:
        The recipe, its fields validated. Settings are validated by ``check``, which knows who owns them.

    Raises:
        BadInput: every problem of the file, the fields and the overrides in one error.
    """
    recipe, problems = try_read_recipe(file, given, overrides, command=command)
    if problems or recipe is None:
        raise BadInput(problems)
    return recipe


def try_read_recipe(
    file: str | Path | None = None,
    given: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    command: Command = "unlearn",
) -> tuple[Recipe | None, list[Problem]]:
    """Read as ``read_recipe`` does, and return (recipe, problems) instead of raising.

    With problems, the recipe is what is left without the parts that are wrong, so that the rest can be checked too; it
    is None where something is left out that every recipe needs.
    """
    problems: list[Problem] = []
    values, lines = _read_file(Path(file), problems) if file is not None else ({}, {})
    unread = bool(problems) and not values
    for key, value in (given or {}).items():
        if value is not None and value != () and value != [] and value != {}:
            values[key] = value
    for text in overrides:
        _override(values, text, problems)
    for key in ("oracle", "audits"):
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
    for key, fix in UNUSED[command].items():
        if values.get(key):
            where = f"{file} line {lines[key]}, {key}" if key in lines else f"recipe: {key}"
            problems.append(Problem(where, f"is not used by `expunge {command}`", fix))
            values.pop(key)
    recipe, wrong = _validate(values, str(file) if file is not None else "", lines, problems)
    if unread:
        # What seems to be missing stands in the file that could not be read.
        problems = [problem for problem in problems if problem.what != MISSING]
    if recipe is None:
        recipe, _ = _validate({k: v for k, v in values.items() if k not in wrong}, "", {}, [])
    return recipe, problems


def _validate(
    values: Mapping[str, Any], file: str, lines: Mapping[str, int], problems: list[Problem]
) -> tuple[Recipe | None, set[str]]:
    """Return the recipe, or None and the parts that are wrong."""
    wrong: set[str] = set()
    try:
        return Recipe(**values), wrong
    except ValidationError as error:
        for item in error.errors():
            # Union members and the like are pydantic's own words for where; the user knows the first parts only.
            parts = [str(part) for part in item["loc"]]
            wrong.add(parts[0])
            key = parts[0] if len(parts) < 2 or isinstance(item["loc"][1], int) else ".".join(parts[:2])
            line = lines.get(key) or lines.get(parts[0])
            where = f"{file} line {line}, {key}" if line else f"recipe: {key}"
            if item["type"] == "missing":
                fix = f"give --{key} or a recipe with it" if not file else f"add `{key}:` to {file}, or give --{key}"
                problems.append(Problem(where, MISSING, fix))
            elif item["type"] == "extra_forbidden":
                problems.append(Problem(where, "is not a part of a recipe", _whose(key)))
            elif item["type"] == "string_pattern_mismatch":
                # The only pattern is that of a role; without a file, it was written as --set limits.ROLE.
                if not line:
                    where = f"--set {'limits' if parts[0] == 'audit_limits' else parts[0]}.{parts[1]}"
                problems.append(Problem(where, "names no set", near_names(parts[1], ["forget", "retain", "holdout"])))
            else:
                fix = f"change it ({Recipe.model_fields[parts[0]].description})"
                if item["type"] == "literal_error":
                    fix = near_names(str(item["input"]), re.findall(r"'([^']*)'", item["msg"]))
                where = where.replace("audit_limits", "limits") if not line else where
                problems.append(Problem(where, f"{in_our_words(item['msg'])} (given: {item['input']!r:.80})", fix))
        return None, wrong


def _whose(key: str) -> str:
    """Say where an unknown key belongs: under settings, or at a key that resembles it."""
    from expunge.training.settings import TrainSettings

    near = near_names(key, list(Recipe.model_fields))
    if key in TrainSettings.model_fields:
        return f"it is a setting of training: write it under `settings:`, or --set {key}=..."
    return near if near.startswith("did you mean") else f"{near}; settings of a method go under `settings:`"


# ---- overrides -----------------------------------------------------------------------------------------------------


def _override(values: dict[str, Any], text: str, problems: list[Problem]) -> None:
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[\w.-]+", key) or key.startswith(".") or key.endswith("."):
        problems.append(Problem(f"--set {text}", "is not key=value", "write it like --set learning_rate=1e-5"))
        return
    try:
        value = yaml.load(raw, Loader=_Loader) if raw.strip() else None
    except yaml.YAMLError as error:
        problems.append(Problem(f"--set {text}", f"has a value that is not YAML: {_first(error)}", "quote the value"))
        return
    head, _, rest = key.partition(".")
    section = SECTIONS.get(head)
    if section is None:
        path = ["settings", key.removeprefix("settings.")]
    elif not rest or (head == "audits" and "." not in rest):
        shape = f"{head}.NAME.KEY" if head == "audits" else f"{head}.KEY"
        problems.append(Problem(f"--set {text}", f"names no setting of {head}", f"write it like --set {shape}=value"))
        return
    else:
        path = [section, *rest.split(".", 1)] if head == "audits" else [section, rest]
    place = values
    for part in path[:-1]:
        inner = place.get(part)
        place[part] = dict(inner) if isinstance(inner, Mapping) else {}
        place = place[part]
    if section is None:
        _forget_nested(place, path[-1])
    place[path[-1]] = value


def yaml_list(raw: str) -> list[Any] | None:
    """Read values separated by commas, each as in YAML: "1e-5,1e-4" is two numbers, "[0, 4]" is one list.

    Returns:
        The values; None where this is not YAML.
    """
    try:
        return list(yaml.load(f"[{raw}]", Loader=_Loader))
    except (yaml.YAMLError, TypeError):
        return None


def _forget_nested(settings: dict[str, Any], dotted: str) -> None:
    """Take out what an earlier source said about the same setting in nested form, so that the override wins."""
    *parents, last = dotted.split(".")
    place: Any = settings
    for part in parents:
        if not isinstance(place.get(part), Mapping):
            return
        place[part] = dict(place[part])
        place = place[part]
    place.pop(last, None)


# ---- YAML ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-5 is a number, no and off are words, and a key stands once."""


_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_FLOAT = re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$")


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this reader or any other would take for something else."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _read_file(path: Path, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the values of a YAML file and the line of each key (dotted for the second level)."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        value = yaml.load(text, Loader=_Loader) if node is not None else None
    except FileNotFoundError:
        problems.append(Problem(str(path), "is not there", "give the path of a YAML file with --recipe"))
    except IsADirectoryError:
        problems.append(Problem(str(path), "is a folder", f"give the file in it, such as {path / 'recipe.yaml'}"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), f"cannot be read: {_first(error)}", "give a UTF-8 text file"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path} line {mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or _first(error)
        problems.append(Problem(where, f"is not YAML: {what}", "correct that line"))
    else:
        if not isinstance(value, dict) or not isinstance(node, yaml.MappingNode):
            problems.append(Problem(str(path), "holds no keys", "write lines such as `model: path/to/model`"))
            return {}, {}
        lines: dict[str, int] = {}
        _lines(node, "", lines, path, problems)
        return {str(key): inner for key, inner in value.items()}, lines
    return {}, {}


def _lines(node: yaml.MappingNode, prefix: str, lines: dict[str, int], path: Path, problems: list[Problem]) -> None:
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines:
            what = f"says '{name}' again, first on line {lines[name]}"
            problems.append(Problem(f"{path} line {line}", what, "keep one of them"))
        lines.setdefault(name, line)
        if isinstance(value, yaml.MappingNode):
            _lines(value, f"{name}.", lines, path, problems)


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the keys in which two recipes differ, dotted where both hold mappings."""
    found: list[str] = []
    for key in _keys(one, other):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{key}.{inner}" for inner in differences(a, b)]
        elif a != b and not (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)):
            found.append(key)
    return found


def _keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterable[str]:
    return dict.fromkeys([*one, *other])
