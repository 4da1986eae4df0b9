"""The whole job on folders of classifiers and regressors: model, verdict, report, card, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageClassification

from expunge.errors import BadInput
from expunge.methods.run import METHODS
from expunge.runs.check import check
from expunge.runs.job import run_audit_job, run_job
from expunge.runs.recipe import read_recipe
from expunge.tasks import predictor
from expunge.tasks.loading import load_task
from expunge.tasks.predictor import Predictor

Make = Callable[..., Predictor]
Rows = Callable[[str, range], Dataset]
QUICK = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2}
SHORT = {"relearning": {"steps": (0, 2), "learning_rates": (1e-3,)}}


@pytest.fixture
def given(tmp_path: Path, tiny_predictor: Make, tiny_rows: Rows) -> Callable[[str], dict[str, Any]]:
    """Writes a model, an oracle and three sets, and returns the recipe of a short run on them."""

    def make(name: str) -> dict[str, Any]:
        for role, part in (("forget", range(8)), ("retain", range(8, 26)), ("holdout", range(30, 38))):
            tiny_rows(name, part).save_to_disk(str(tmp_path / role))
        tiny_predictor(name, 0).save(tmp_path / "model")
        tiny_predictor(name, 1).save(tmp_path / "oracle")
        recipe = {role: str(tmp_path / role) for role in ("model", "forget", "retain", "holdout")}
        more = {"factory": "tiny_modules:plain_module"} if name == "module" else {}
        return {**recipe, **more, "oracle": [str(tmp_path / "oracle")], "audit_settings": SHORT, "device": "cpu"}

    return make


@pytest.mark.parametrize("name", ["resnet", "module", "bert", "table", "table-regressor"])
def test_from_a_folder_to_a_report(given: Callable[..., Any], tmp_path: Path, name: str) -> None:
    recipe = read_recipe(given={**given(name), "method": "grad_diff", "settings": QUICK})
    done = run_job(recipe, tmp_path / "run")
    assert done is not None
    assert done.report.verdict is not None
    assert [f.note for f in done.report.findings if f.status == "crashed"] == []
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "How well does the model still predict the examples?" in page
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "Removal level" in card
    assert ("plain_module" in card) == (name == "module")
    training = done.report.training
    assert training is not None
    assert ("squared error" if "regressor" in name else ["cross-entropy", "(nats)"][0]) in training.forget_statistic
    assert done.report.samples, "what the models predicted is quoted"
    new = load_task(tmp_path / "run" / "model", factory=recipe.factory)
    assert new.kind == load_task(recipe.model, factory=recipe.factory).kind
    if name == "resnet":
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "run" / "model")
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), new.model.parameters(), strict=True))

    # A run folder is a model to audit, and the same again is only read.
    again = run_job(recipe, tmp_path / "run")
    assert again is not None
    assert again.repeated
    audit = {k: v for k, v in given(name).items() if k != "model"}
    judged = run_audit_job(
        read_recipe(given={**audit, "model": str(tmp_path / "run"), "original": recipe.model}, command="audit")
    )
    assert judged.report.removal_level == "approximate"


def test_batch_normalisation_and_augmentation_resume_to_the_same_bytes(
    given: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**QUICK, "checkpoint_every": 1, "optimizer": "sgd"}
    recipe = read_recipe(given={**given("resnet"), "method": "finetune", "settings": settings, "augment": "flip_shift"})
    run_job(recipe, tmp_path / "whole")
    from expunge.training import loop

    real = loop._Run._step

    def dies(self: Any, number: int) -> bool:
        if number == 2:
            raise KeyboardInterrupt
        return real(self, number)

    monkeypatch.setattr(loop._Run, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run_job(recipe, tmp_path / "cut")
    monkeypatch.setattr(loop._Run, "_step", real)
    run_job(recipe, tmp_path / "cut")
    whole, cut = (load_task(tmp_path / run / "model").model.state_dict() for run in ("whole", "cut"))
    assert any("running_mean" in key for key in whole)
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())


def test_what_cannot_work_is_refused_at_once_and_before_any_compute(
    given: Callable[..., Any], tmp_path: Path, tiny_predictor: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_pretrained", "load_module"):
        monkeypatch.setattr(predictor, name, lambda *_: pytest.fail("weights were loaded"))
    recipe = given("table")
    tiny_predictor("table-regressor").save(tmp_path / "oracle")
    rows = Dataset.load_from_disk(str(tmp_path / "forget")).to_list()
    rows[3]["label"] = "dog"
    Dataset.from_list(rows).to_json(tmp_path / "forget.jsonl")
    wrong = {**recipe, "forget": str(tmp_path / "forget.jsonl"), "method": "idk", "audits": ["rouge"]}
    with pytest.raises(BadInput) as error:
        run_job(read_recipe(given=wrong), tmp_path / "run")
    text = str(error.value)
    for words in (
        "method idk: does not serve tabular_classifier",
        "'rouge' does not serve tabular_classifier",
        "does not know: 'dog' (",
        "forget.jsonl line 4",
        "predicts other classes, or numbers on another scale",
    ):
        assert words in text, words
    assert not (tmp_path / "run").exists()


def test_options_of_language_models_are_refused(given: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"template: is no option of .*predictor"):
        run_job(read_recipe(given={**given("table"), "template": "{prompt} {answer}"}), tmp_path / "run")


def test_a_folder_does_not_choose_what_code_runs(given: Callable[..., Any], tmp_path: Path) -> None:
    recipe = {k: v for k, v in given("module").items() if k != "factory"}
    with pytest.raises(
        BadInput, match=r"runs code that is not Expunge's -> if you trust it, name it: factory=tiny_mod"
    ):
        run_job(read_recipe(given=recipe), tmp_path / "run")
    stored = json.loads((tmp_path / "model" / "expunge.json").read_text(encoding="utf-8"))
    stored["factory"] = {"function": "os:system", "arguments": {"command": "touch pwned"}}
    (tmp_path / "model" / "expunge.json").write_text(json.dumps(stored), encoding="utf-8")
    for named in (None, "tiny_modules:plain_module"):
        with pytest.raises(BadInput, match="os:system"):
            run_job(read_recipe(given={**recipe, "factory": named}), tmp_path / "run")


PREDICTING = [name for name in METHODS.names() if "tabular_classifier" in METHODS.get(name).tasks]


@pytest.mark.parametrize("method", PREDICTING)
def test_every_method_is_checked_without_weights(
    given: Callable[..., Any], method: str, tiny_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_pretrained", "load_module"):
        monkeypatch.setattr(predictor, name, lambda *_: pytest.fail("weights were loaded"))
    recipe = {**given("table"), "method": method, "settings": {}}
    if METHODS.get(method).scenarios == ("class",):
        whole = tiny_rows("table", range(26))
        for role, gone in (("forget", True), ("retain", False)):
            whole.filter(lambda row, gone=gone: (row["label"] == "ant") is gone).save_to_disk(
                str(tmp_path / "of" / role)
            )
            recipe[role] = str(tmp_path / "of" / role)
        recipe["scenario"] = "class"
    assert check(read_recipe(given=recipe), None).method is not None


def test_an_oracle_of_another_kind_is_named_and_the_sets_are_still_read(
    given: Callable[..., Any], tmp_path: Path, tiny_predictor: Make
) -> None:
    fields = given("table")
    tiny_predictor("bert").save(tmp_path / "other")
    with pytest.raises(BadInput) as error:
        check(read_recipe(given={**fields, "method": "finetune", "oracle": [str(tmp_path / "other")]}), None)
    what = "is given text inputs (text_classifier), and the model given tabular ones"
    assert [problem.what for problem in error.value.problems] == [what]
    # An option that this kind of model does not know says nothing about the sets.
    with pytest.raises(BadInput) as error:
        check(read_recipe(given={**fields, "method": "simnpo", "template": "{prompt} {answer}"}), None)
    assert [problem.where for problem in error.value.problems] == ["template"]
