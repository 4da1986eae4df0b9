"""From files to the files of a request: what is written, what is refused, and that a stopped search goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Value
from PIL import Image

from expunge.data.labelled import read_labelled
from expunge.errors import BadInput
from expunge.forget_sets.worst_case import WorstCase
from expunge.runs.forget_set import RESULT, SEARCH, write_forget_set
from expunge.runs.job import run_job
from expunge.runs.recipe import read_recipe
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor

QUICK = {"iterations": 4, "unlearn_epochs": 1, "count": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A training set, unseen examples and a model, in files."""
    folder, luck = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    kinds = Features({"image": Array2D((4, 4), "float32"), "label": Value("string")})
    for name, count in (("train", 40), ("unseen", 12)):
        rows = {
            "image": list(luck.random((count, 4, 4), dtype=np.float32)),
            "label": [str(i % 3) for i in range(count)],
        }
        Dataset.from_dict(rows, features=kinds).to_parquet(str(folder / f"{name}.parquet"))
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 16, "outputs": 3, "hidden": [8]})
    Predictor.of_images(factory.make(0), list("012"), factory=factory, channels=1).save(folder / "model")
    return {"data": str(folder / "train.parquet"), "holdout": str(folder / "unseen.parquet"),
            "model": str(folder / "model")}  # fmt: skip


def test_what_is_written_can_be_forgotten_by_any_method(files: dict[str, str], tmp_path: Path) -> None:
    done = write_forget_set("worst_case", out=tmp_path / "set", settings=QUICK, **files)  # type: ignore[arg-type]
    train = read_labelled(files["data"], "image")
    sets = {role: read_labelled(path, "image") for role, path in done.to_dict()["files"].items()}
    assert {role: len(examples) for role, examples in sets.items()} == {"forget": 8, "retain": 32, "test": 12}
    assert sorted([*sets["forget"]["id"], *sets["retain"]["id"]]) == sorted(train["id"]), "ids survive"
    best = sorted(done.found["scores"], key=done.found["scores"].get)[-8:]
    assert set(best) == set(sets["forget"]["id"])
    assert not (tmp_path / "set" / SEARCH).exists()
    given = {"model": files["model"], "method": "finetune", "audits": ["prediction_loss", "accuracies"]}
    recipe = read_recipe(tmp_path / "set/request.yaml", given, ["epochs=1"])
    run = run_job(recipe, tmp_path / "run")
    assert run is not None
    assert run.report.request.fingerprint == done.found["fingerprint"]
    assert run.report.verdict is not None
    assert run.report.verdict["result"] == "inconclusive", "unseen examples are no control for what was chosen"
    (accuracies,) = [f for f in run.report.findings if f.audit == "accuracies"]
    assert accuracies.estimates["unlearned"]["ta"].n == 12


def test_a_stopped_search_goes_on_and_a_finished_one_is_not_done_again(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(out: Path) -> Any:
        return write_forget_set("worst_case", out=out, settings=QUICK, **files)  # type: ignore[arg-type]

    whole = write(tmp_path / "whole")
    choose, seen = WorstCase.choose, []

    def stopping(self: Any, *args: Any) -> Any:
        def heard(done: int, of: int, values: Any) -> None:
            seen.append(done)
            if seen == [1, 2]:
                raise KeyboardInterrupt

        return choose(self, *args[:-1], heard)

    monkeypatch.setattr(WorstCase, "choose", stopping)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped")
    assert json.loads((tmp_path / "stopped" / RESULT).read_text())["status"] == "searching"
    assert not (tmp_path / "stopped/forget.parquet").exists()
    rest = write(tmp_path / "stopped")
    assert seen == [1, 2, 3, 4]
    assert rest.found["scores"] == whole.found["scores"]
    assert rest.found["fingerprint"] == whole.found["fingerprint"]
    assert write(tmp_path / "stopped").found == rest.found
    assert len(seen) == 4


def test_another_forget_set_in_the_folder_is_refused_unless_told(files: dict[str, str], tmp_path: Path) -> None:
    one: dict[str, Any] = {"data": files["data"], "out": tmp_path / "set", "inputs": "image"}
    write_forget_set("random", **one)
    with pytest.raises(BadInput, match=r"differs in job\.seed"):
        write_forget_set("random", seed=1, **one)
    done = write_forget_set("random", seed=1, overwrite=True, **one)
    assert done.found["job"]["seed"] == 1
    with pytest.raises(BadInput, match=r"differs in job\.selector"):
        write_forget_set("class", settings={"labels": 1}, **one)


@pytest.mark.parametrize(
    ("selector", "change", "words"),
    [
        ("worst_case", {"model": None}, ["asks a model, and none is given"]),
        ("worst_case", {"model": "nowhere/at/all"}, ["nowhere/at/all: is not there"]),
        ("random", {"model": None, "inputs": None}, ["nothing says how the data are read"]),
        ("random", {"inputs": "text"}, ["inputs: is text, and the model is given image"]),
        ("worst", {"data": "no.parquet"}, ["did you mean worst_case", "no.parquet"]),
        ("class", {"settings": {"labels": "9"}}, ["labels: 9 is not there -> there are 0; 1; 2"]),
        ("worst_case", {"settings": {"share": 0.99}}, ["nothing would be left"]),
        ("random", {"settings": {"share": 0.95}}, ["2 would be left for 3 classes"]),
        ("random", {"settings": {"share": 2}}, ["share"]),
        ("random", {"holdout": "SAME"}, ["data and holdout: share 40"]),
        ("random", {"columns": {"label": "kind"}}, ["kind"]),
    ],
)
def test_everything_wrong_is_said_before_anything_is_computed(
    selector: str, change: dict[str, Any], words: list[str], files: dict[str, str], tmp_path: Path
) -> None:
    given: dict[str, Any] = {**files, "holdout": None, "out": tmp_path / "set", **change}
    if given["holdout"] == "SAME":
        given["holdout"] = files["data"]
    with pytest.raises(BadInput) as caught:
        write_forget_set(selector, **given)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(caught.value.problems or words) == len(words)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_something_else_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="is not empty and holds no forget set"):
        write_forget_set("random", files["data"], tmp_path / "other", inputs="image")
    with pytest.raises(BadInput, match="is a file"):
        write_forget_set("random", files["data"], tmp_path / "other/notes.txt", inputs="image")
    with pytest.raises(BadInput, match="is the data or holds it"):
        write_forget_set("random", files["data"], Path(files["data"]).parent, inputs="image")


def test_pictures_in_folders_keep_their_ids(tmp_path: Path) -> None:
    luck = np.random.default_rng(1)
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        for k in range(5):
            picture = Image.fromarray(luck.integers(0, 255, (6, 6, 3), dtype=np.uint8))
            picture.save(tmp_path / "train" / label / f"{k}.png")
    source = str(tmp_path / "train")
    write_forget_set("random", source, tmp_path / "set", inputs="image", settings={"count": 3})
    back = [read_labelled(tmp_path / "set" / f"{role}.parquet", "image") for role in ("forget", "retain")]
    assert sorted([*back[0]["id"], *back[1]["id"]]) == sorted(read_labelled(source, "image")["id"])
