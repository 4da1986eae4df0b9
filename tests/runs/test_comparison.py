from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.audits.suite import AUDITS, run_audits
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest
from expunge.runs.comparison import MAIN, compare_runs
from expunge.runs.job import run_audit_job
from expunge.runs.recipe import read_recipe


def test_the_main_numbers_are_numbers_that_audits_give(files: Any, tmp_path: Path) -> None:
    given = files.fields(oracle=[str(files.oracle)], original=str(files.model))
    fields = {k: v for k, v in given.items() if k not in ("settings", "audits")}
    recipe = read_recipe(None, fields, ["audits.relearning.steps=[0, 1]"], command="audit")
    found = run_audit_job(recipe, tmp_path / "a")
    measured = {(f.audit, scalar.name) for f in found.findings for scalar in f.scalars}
    # These two need wrong answers to every question, which these files do not have.
    needs_perturbed = {"truth_ratio", "forget_quality"}
    for_language = [key for key in MAIN if "causal_lm" in AUDITS.get(key[0]).tasks]
    assert [key for key in for_language if key not in measured and key[0] not in needs_perturbed] == []

    compared = compare_runs([tmp_path / "a"])
    assert compared.runs[0].name == "a"
    row = {row.key: row for row in compared.rows}["probability.forget_probability"]
    assert row.text("a").startswith("0.00")


def test_two_folders_of_one_name_keep_two_columns(files: Any, tmp_path: Path) -> None:
    fields = {k: v for k, v in files.fields(audits=["probability"]).items() if k != "settings"}
    recipe = read_recipe(None, fields, command="audit")
    for parent in ("x", "y"):
        run_audit_job(recipe, tmp_path / parent / "run")
    names = [run.name for run in compare_runs([tmp_path / "x" / "run", tmp_path / "y" / "run"]).runs]
    assert names == ["run", str(tmp_path / "y" / "run")]


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no report"):
        compare_runs([tmp_path])


def test_the_main_numbers_of_classifiers_are_given_too(tiny_predictor: Any, tiny_rows: Any) -> None:
    forget, retain = tiny_rows("table", range(0, 18, 3)), tiny_rows("table", range(1, 30, 3))
    request = DeletionRequest(forget, retain, tiny_rows("table", range(30, 40)), scenario="class")
    models = {name: tiny_predictor("table", seed) for seed, name in enumerate(("unlearned", "oracle"))}
    only = [key for key in MAIN if "causal_lm" not in AUDITS.get(key[0]).tasks]
    asked = list(dict.fromkeys(audit for audit, _ in only))
    extra = {"test": tiny_rows("table", range(40, 60))}
    measured = {(f.audit, s.name) for f in run_audits(models, request, asked, extra=extra).findings for s in f.scalars}
    assert only
    assert [key for key in only if key not in measured] == []
