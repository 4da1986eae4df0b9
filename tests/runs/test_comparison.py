from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.errors import BadInput
from expunge.runs.comparison import MAIN, compare_runs
from expunge.runs.job import run_audit_job
from expunge.runs.recipe import read_recipe


def test_the_main_numbers_are_numbers_that_audits_give(files: Any, tmp_path: Path) -> None:
    given = files.fields(oracle=[str(files.model)], original=str(files.model))
    fields = {k: v for k, v in given.items() if k not in ("settings", "audits")}
    recipe = read_recipe(None, fields, ["audits.relearning.steps=[0, 1]"], command="audit")
    found = run_audit_job(recipe, tmp_path / "a")
    measured = {(f.audit, scalar.name) for f in found.findings for scalar in f.scalars}
    # These two need wrong answers to every question, which these files do not have.
    needs_perturbed = {"truth_ratio", "forget_quality"}
    assert [key for key in MAIN if key not in measured and key[0] not in needs_perturbed] == []
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
