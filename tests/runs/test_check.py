"""What a job is checked for before work starts: every method can be asked about a model that is not loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from expunge.errors import BadInput
from expunge.methods.run import METHODS
from expunge.runs.check import check
from expunge.runs.folder import RunFolder
from expunge.runs.recipe import Recipe

# What a method's own defaults ask too much of a tiny request for.
OWN = {"in_context": {"forget_shots": 1, "retain_shots": 1}}
LANGUAGE = [name for name in METHODS.names() if "causal_lm" in METHODS.get(name).tasks]


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_is_checked_without_weights(files: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    load = AutoModelForCausalLM.from_pretrained

    def explode(*args: Any, **how: Any) -> Any:
        if how.get("device_map") != "meta":
            raise AssertionError("weights were read")
        return load(*args, **how)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", explode)
    fields = files.fields(method=method)
    fields["settings"] = OWN.get(method, {})
    if method in LANGUAGE:
        assert check(Recipe(**fields), None).method is not None
    else:
        with pytest.raises(BadInput, match=f"method {method}: does not serve causal_lm"):
            check(Recipe(**fields), None)


def test_a_method_that_looks_at_the_structure_refuses_what_is_not_there(files: Any) -> None:
    with pytest.raises(BadInput, match="method rmu: layer"):
        check(Recipe(**files.fields(method="rmu", settings={"layer": 99})), None)


@pytest.fixture
def copied(files: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the model to a folder of this name, to be damaged there."""
    return lambda name: Path(shutil.copytree(files.model, tmp_path / name))


def said(**fields: Any) -> list[str]:
    with pytest.raises(BadInput) as error:
        check(Recipe(**fields), None)
    return [str(problem) for problem in error.value.problems]


def test_weights_that_cannot_be_used_are_refused_before_work_starts(files: Any, copied: Callable[[str], Path]) -> None:
    broken, cut = copied("broken") / "model.safetensors", copied("cut") / "model.safetensors"
    weights = load_file(broken)
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, broken, metadata={"format": "pt"})
    cut.write_bytes(cut.read_bytes()[:-100])
    found = said(**files.fields(model=str(broken.parent), oracle=[str(cut.parent)], method="gradient_ascent"))
    assert len(found) == 2
    assert found[0].startswith(f"{broken}: has NaN or infinite values in 1 of ")
    assert found[1].startswith(f"{cut}: is damaged or cut off")


def test_weights_that_are_not_the_configurations_are_refused_before_work_starts(
    files: Any, copied: Callable[[str], Path]
) -> None:
    lacking, other = copied("lacking"), copied("other")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    config["intermediate_size"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    problems = said(**files.fields(model=str(lacking), oracle=[str(other)]))
    assert f"model {lacking}: has no weights for 1 tensor(s): model.norm.weight" in "\n".join(problems)
    assert f"model {other}: has 6 tensor(s) of another shape than its configuration" in "\n".join(problems)
    assert len(problems) == 2


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(files: Any, copied: Callable[[str], Path]) -> None:
    small = copied("small")
    model = AutoModelForCausalLM.from_pretrained(small)
    model.resize_token_embeddings(40)
    model.save_pretrained(small)
    ids = r"embeds 40 tokens, and its tokenizer makes ids up to \d+ -> give the tokenizer that belongs to it"
    (problem,) = said(**files.fields(model=str(small)))
    assert re.search(ids, problem)
    (problem,) = said(**files.fields(oracle=[str(small)]))
    assert re.search(f"model {re.escape(str(small))}: {ids}", problem)


def test_an_oracle_must_not_be_the_model_and_counts_once(files: Any, copied: Callable[[str], Path]) -> None:
    (problem,) = said(**files.fields(oracle=[str(copied("again"))]))
    assert f"again: has the same weights as the model {files.model}, which knows the forget set" in problem
    (problem,) = said(**files.fields(oracle=[str(files.oracle), str(files.oracle)]))
    assert f"has the same weights as the oracle {files.oracle}" in problem
    fields = {"model": str(files.oracle), "original": str(files.model), "oracle": [str(files.oracle)]}
    judged = {k: v for k, v in files.fields(**fields).items() if k != "settings"}
    assert check(Recipe(**judged), None, "audit").method is None  # how a retrained model is judged


def test_a_disk_without_room_for_the_model_is_found_before_work(
    files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match=r"run: has 0 MB free, and the new model takes \d+ MB or more"):
        check(Recipe(**files.fields()), RunFolder(tmp_path / "run"))
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").touch()
    assert check(Recipe(**files.fields()), RunFolder(tmp_path / "run")).method is not None, "it has its room already"


def test_damaged_and_unknown_configurations_are_named(files: Any, copied: Callable[[str], Path]) -> None:
    file = copied("odd") / "config.json"
    config = json.loads(file.read_text())
    file.write_text("{oops")
    assert said(**files.fields(model=str(file.parent)))[0].startswith(f"{file}: cannot be read: ")
    file.write_text(json.dumps({**config, "model_type": "fancynet"}))
    (found,) = said(**files.fields(model=str(file.parent)))
    assert "fancynet" in found
    (found,) = said(**files.fields(model=str(files.model / "model.safetensors")))
    assert found.endswith(f"-> give the folder, {files.model}")


def test_an_oracle_with_another_tokenizer_is_refused(files: Any, copied: Callable[[str], Path], tmp_path: Path) -> None:
    other = copied("other") / "tokenizer.json"
    tokenizer = json.loads(other.read_text())
    merged = tokenizer["model"]["vocab"]
    one, two = list(merged)[-2:]
    merged[one], merged[two] = merged[two], merged[one]
    other.write_text(json.dumps(tokenizer))
    (found,) = said(**files.fields(oracle=[str(other.parent)]))
    assert "has another tokenizer than the model given" in found
    (other.parent / "tokenizer.json").unlink()
    (other.parent / "tokenizer_config.json").unlink()
    (found,) = said(**files.fields(oracle=[str(other.parent)]))
    assert "has no tokenizer that can be loaded" in found


def test_where_the_model_is_not_known_columns_are_not_judged(files: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("height,label\n1,a\n2,b\n")
    (found,) = said(**files.fields(model=str(tmp_path / "nowhere"), forget=str(rows)))
    assert "nowhere: is not there" in found
    found, other = said(**files.fields(model=str(tmp_path / "nowhere"), forget=str(tmp_path / "no.csv")))
    assert "nowhere: is not there" in found
    assert "no.csv: there is no such file" in other
