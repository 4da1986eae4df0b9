from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.errors import BadInput, Problem
from expunge.reports.report import RunReport
from expunge.runs import facts, job
from expunge.runs.job import JobResult, run_audit_job, run_job
from expunge.runs.progress import Progress
from expunge.runs.recipe import Recipe, read_recipe
from expunge.tasks.loading import load_task

RecipeOf = Callable[..., Recipe]


@pytest.fixture
def recipe(files: Any) -> RecipeOf:
    def make(*overrides: str, **more: Any) -> Recipe:
        return read_recipe(None, files.fields(**more), overrides)

    return make


def run(recipe: Recipe, out: Path, **options: Any) -> JobResult:
    result = run_job(recipe, out, **options)
    assert result is not None
    return result


class Heard(Progress):
    def __init__(self, stop_at: int | None = None) -> None:
        self.stages: list[str] = []
        self.warnings: list[Problem] = []
        self.trained = 0
        self.stop_at = stop_at

    def stage(self, title: str) -> None:
        self.stages.append(title)

    def step(self, done: int, total: int, values: Any = "") -> None:
        if self.stages[-1].startswith("forgetting"):
            self.trained += 1
            if done == self.stop_at:
                raise KeyboardInterrupt

    def warn(self, problem: Problem) -> None:
        self.warnings.append(problem)


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("uld", {"epochs": 2, "batch_size": 4, "lora.rank": 2}),
        ("in_context", {"forget_shots": 1, "retain_shots": 1}),
    ],
)
def test_a_guard_is_a_model_wherever_one_is_named(
    recipe: RecipeOf, files: Any, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    done = run(recipe(method=method, settings=settings), tmp_path / "run")
    assert done.report.removal_level == "guard"
    assert done.result != "removed"
    card = (tmp_path / "run/model/README.md").read_text(encoding="utf-8")
    assert "How to load it" in card
    assert "without" in card
    assert facts.weights_sha256(tmp_path / "run/model") != facts.weights_sha256(files.model) or method == "in_context"
    # The library alone loads the model as it was; the folder is audited as what it is.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model").state_dict()
    before = AutoModelForCausalLM.from_pretrained(files.model).state_dict()
    assert all(torch.equal(plain[name], value) for name, value in before.items())
    fields = {**files.fields(), "model": str(tmp_path / "run"), "original": str(files.model)}
    fields |= {"settings": {}, "audits": ["probability", "weight_distance"]}
    found = run_audit_job(read_recipe(None, fields, command="audit"))
    assert found.report.removal_level == "guard"
    estimates = found.finding("probability").estimates
    assert estimates["unlearned"]["forget_probability"].value != estimates["original"]["forget_probability"].value
    assert found.finding("weight_distance").estimates["unlearned"]["relative_distance"].value == 0
    # And forgotten from again: what comes out is still behind its guard.
    again = run(recipe(model=str(tmp_path / "run"), method="gradient_ascent"), tmp_path / "again")
    assert again.report.removal_level == "guard", "a method that changes weights does not take the guard away"
    assert type(load_task(tmp_path / "again/model")) is type(load_task(tmp_path / "run/model"))


def test_from_files_to_a_model_a_verdict_and_a_report(recipe: RecipeOf, files: Any, tmp_path: Path) -> None:
    before = facts.weights_sha256(files.model)
    heard = Heard()
    done = run(recipe(oracle=[str(files.oracle)], name="people"), tmp_path / "run", progress=heard)
    out = tmp_path / "run"
    assert facts.weights_sha256(files.model) == before
    model = AutoModelForCausalLM.from_pretrained(out / "model", use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    with torch.no_grad():
        assert torch.isfinite(model(**tokenizer("Where was Zoë born?", return_tensors="pt")).logits).all()

    names = {p.name for p in out.iterdir()}
    assert {"recipe.yaml", "facts.json", "log.jsonl", "forgotten.json", "model", "report.json", "report.html"} <= names
    assert "checkpoints" not in names, "what only an unfinished run needs is deleted"
    assert not any(name.startswith("reference") for name in names)

    assert done.result in ("removed", "not removed", "inconclusive")
    report = RunReport.from_json((out / "report.json").read_text())
    assert report.to_json() == done.report.to_json()
    assert report.removal_level == "approximate"
    assert report.method is not None
    assert report.method.settings["learning_rate"] == 1e-5
    assert report.training is not None
    assert set(report.training.loss) == {"npo", "retain_nll"}
    assert report.training.path[0].step == 0
    assert sum(point.kept for point in report.training.path) == 1
    assert set(report.cost) == {"forgetting", "audits while forgetting", "proving"}
    assert report.models["unlearned"].sha256 == facts.weights_sha256(out / "model")
    assert report.models["original"].sha256 == before
    assert {s.role for s in report.samples} == {"forget", "retain", "holdout"}
    assert set(report.samples[0].answers) == {"original", "unlearned", "oracle"}
    assert "people" in (out / "report.html").read_text()
    card = (out / "model" / "README.md").read_text()
    assert "removal_level: approximate" in card

    known = json.loads((out / "facts.json").read_text())
    assert known["hashes"]["model"] == before
    assert known["hashes"]["forget"] == facts.sha256(files.forget)
    assert known["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "probe" not in line] == [1, 2, 3, 4, 5, 6]
    assert heard.stages[0] == "checking"
    assert heard.trained == 6


def test_the_written_recipe_has_every_setting_and_is_the_same_run(recipe: RecipeOf, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe("beta=0.3"), out)
    stored = yaml.safe_load((out / "recipe.yaml").read_text())
    assert stored["settings"]["beta"] == 0.3
    assert stored["settings"]["stop"]["every"] == 2
    assert stored["settings"]["checkpoint_every"] == 1
    assert stored["audit_settings"]["rouge"]
    assert stored["verdict"]["alpha"] == 0.05
    heard = Heard()
    again = run(read_recipe(out / "recipe.yaml"), out, progress=heard)
    assert again.repeated
    assert heard.stages == ["checking"]
    other = run(read_recipe(out / "recipe.yaml"), tmp_path / "other")
    assert weights(tmp_path / "other") == weights(out)
    assert not other.repeated


def test_what_the_recipe_says_about_looks_and_checkpoints_holds(recipe: RecipeOf, tmp_path: Path) -> None:
    run(recipe("stop.every=0", "checkpoint_every=0"), tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert stored["settings"]["stop"]["every"] == 0
    assert stored["settings"]["checkpoint_every"] == 0
    assert "audits while forgetting" not in json.loads((tmp_path / "run" / "report.json").read_text())["cost"]


def test_a_rule_that_nobody_looks_at_is_refused(recipe: RecipeOf, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"stop\.retain_ceiling: has no effect, because stop\.every is 0"):
        run_job(recipe("stop.every=0", "stop.retain_ceiling=1"), tmp_path / "run")


def test_a_stopped_run_goes_on_to_the_same_weights(recipe: RecipeOf, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(recipe(), whole)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), stopped, progress=Heard(stop_at=4))
    assert (stopped / "checkpoints").is_dir()
    assert not (stopped / "model").exists()
    heard = Heard()
    done = run(recipe(), stopped, progress=heard)
    assert heard.trained == 3  # the step that was stopped in had not been saved
    assert weights(stopped) == weights(whole)
    assert (stopped / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    assert any("resumed after step 3" in note for note in done.report.notes)


def test_without_a_checkpoint_the_log_starts_anew(recipe: RecipeOf, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe("checkpoint_every=0"), tmp_path / "run", progress=Heard(stop_at=3))
    run(recipe("checkpoint_every=0"), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "probe" not in line] == [1, 2, 3, 4, 5, 6]


def test_stopped_while_proving_it_does_not_forget_again(recipe: RecipeOf, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe(), out)
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    for name in ("report.json", "report.html"):
        (out / name).unlink()
    heard = Heard()
    done = run(recipe(), out, progress=heard)
    assert heard.trained == 0
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert not done.repeated
    assert (out / "report.json").is_file()


def test_another_recipe_or_changed_data_is_refused(recipe: RecipeOf, files: Any, tmp_path: Path) -> None:
    forget = tmp_path / "forget.jsonl"
    shutil.copy(files.forget, forget)
    out = tmp_path / "run"
    run(recipe(forget=str(forget)), out)
    with pytest.raises(BadInput, match=r"differs in settings\.beta"):
        run(recipe("beta=0.2", forget=str(forget)), out)
    forget.write_text("".join(forget.read_text().splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(BadInput, match="the content of forget, request has changed"):
        run(recipe(forget=str(forget)), out)
    assert run(recipe("beta=0.2", forget=str(forget)), out, overwrite=True).report.request.forget == 9


@pytest.mark.parametrize(
    ("method", "first", "second"),
    [
        ("scrub", ["passes=2", "max_passes=1"], "learning_rate=3e-4"),
        ("prune", ["sparsity=0.3", "then=gradient_ascent", "following.epochs=1"], "learning_rate=3e-4"),
        ("whp", ["reinforce_epochs=1"], "reinforce_learning_rate=3e-4"),
    ],
)
def test_a_method_in_stages_leaves_logs_only_and_is_done_anew_by_overwrite(
    files: Any, tmp_path: Path, method: str, first: list[str], second: str
) -> None:
    def of(*overrides: str) -> Recipe:
        fields = files.fields(method=method, audits=["probability"])
        return read_recipe(None, fields, ["checkpoint_every=1", *overrides])

    out = tmp_path / "run"
    run(of(*first), out)
    assert [p for p in out.rglob("*.safetensors") if p.parent.name != "model"] == []
    assert not list(out.rglob("checkpoints"))
    assert list(out.rglob("log.jsonl"))
    run(of(*first, second), out, overwrite=True)
    run(of(*first, second), tmp_path / "fresh")
    assert weights(out) == weights(tmp_path / "fresh")


def test_everything_wrong_is_said_at_once_and_nothing_is_written(files: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answer": ""}\n{"question": "b"}\n')
    wrong = read_recipe(
        None,
        {
            **files.fields(forget=str(bad), holdout=str(tmp_path / "no.jsonl"), retain=None, audits=["ruge"]),
            "model": str(tmp_path / "modle"),
            "oracle": [str(tmp_path / "oracl")],
            "device": "gpu",
        },
        ["learning_rat=1", "epochs=0", "verdict.alfa=1", "stop.forget_target=oracle"],
    )
    with pytest.raises(BadInput) as error:
        run_job(wrong, tmp_path)
    found = str(error.value)
    for part in (
        "learning_rat: is not a setting of npo or of training -> did you mean learning_rate",
        "epochs: input should be greater than 0",
        "'ruge' is not an audit -> did you mean rouge",
        "verdict.alfa: is not a setting -> did you mean alpha",
        "device: 'gpu' is not a device",
        "bad.jsonl",
        "line 2",
        "no.jsonl",
        f"model {tmp_path}/modle: is not there",
        f"model {tmp_path}/oracl: is not there",
        "is not empty and not a run folder",
    ):
        assert part in found, (part, found)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_missing_set_is_named_before_anything_is_loaded(files: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="method npo: needs a retain set -> give one with --retain FILE"):
        run_job(read_recipe(None, files.fields(retain=None)), tmp_path / "run")
    with pytest.raises(BadInput, match="is oracle and no oracle is there"):
        run_job(read_recipe(None, files.fields(), ["stop.forget_target=oracle"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_examples_longer_than_the_context_are_found_by_the_tokenizer(files: Any, tmp_path: Path) -> None:
    long = tmp_path / "long.jsonl"
    rows = [{"question": f"Say {k}", "answer": f"{k} word " * (300 if k == 0 else 1)} for k in range(10)]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard = Heard()
    run(read_recipe(None, files.fields(forget=str(long), audits=["probability"])), tmp_path / "run", progress=heard)
    assert any("longer than the context of 256" in problem.what for problem in heard.warnings)


def test_a_model_by_a_misspelled_name_does_not_ask_the_hub(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files.model.parent)

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("expunge.runs.check.config_of", asked)
    for path in ("modle", "model/sub", "./model/x"):
        with pytest.raises(BadInput, match="is not there"):
            run_job(read_recipe(None, files.fields(model=path)), "out")


def test_training_that_breaks_down_is_said(recipe: RecipeOf, tmp_path: Path) -> None:
    done = run(recipe("learning_rate=1e30", "clip_norm=null", method="gradient_ascent"), tmp_path / "run")
    assert done.diverged
    assert "diverged" in done.stop_reason or "collapsed" in done.stop_reason
    assert any("Training broke down" in note for note in done.report.notes)
    assert run(read_recipe(tmp_path / "run" / "recipe.yaml"), tmp_path / "run").diverged


@pytest.mark.parametrize(
    ("kept", "steps", "said"),
    [
        (0, 3, "the original, unchanged"),
        (2, 3, "the last good one, after step 2"),
        (3, 3, "after step 3, the last finite"),
    ],
)
def test_which_weights_are_left_after_training_broke_down_is_said(kept: int, steps: int, said: str) -> None:
    assert said in job._kept({"kept_step": kept, "steps": steps})


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(
    recipe: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from expunge.errors import ExpungeError

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("expunge.reports.report.RunReport.write_json", full)
        with pytest.raises(ExpungeError, match="the disk is full"):
            run(recipe(), tmp_path / "run")
    heard = Heard()
    run(recipe(), tmp_path / "run", progress=heard)
    assert heard.trained == 0


def test_what_was_asked_for_and_cannot_be_answered_is_said(recipe: RecipeOf, files: Any, tmp_path: Path) -> None:
    heard = Heard()
    done = run(recipe(audits=["multiple_choice", "forget_quality"], holdout=None), tmp_path / "run", progress=heard)
    (warned,) = [p for p in heard.warnings if p.where.startswith("audit")]
    assert str(warned).startswith("audit forget_quality: needs oracle, which is not given: it will say 'no data'")
    assert any(note.startswith("multiple_choice has no data: ") for note in done.report.notes)
    heard = Heard()
    run(recipe(audits=None, holdout=None), tmp_path / "default", progress=heard)
    assert not [p for p in heard.warnings if p.where.startswith("audit")]


def test_retraining_makes_an_oracle_whose_cost_is_compared_with(recipe: RecipeOf, tmp_path: Path) -> None:
    settings = {"epochs": 2, "batch_size": 4}
    made = run(recipe(method="retrain", settings=settings), tmp_path / "oracle")
    assert made.report.removal_level == "exact"
    done = run(recipe("stop.forget_target=oracle", oracle=[str(tmp_path / "oracle")]), tmp_path / "run")
    assert done.report.cost["retraining"] == made.report.cost["forgetting"]
    assert done.report.models["oracle"].path == str(tmp_path / "oracle" / "model")
    assert done.report.training is not None
    assert done.report.training.forget_target is not None


def test_limits_are_resolved_and_said(recipe: RecipeOf, tmp_path: Path) -> None:
    done = run(recipe("limits.retain=5"), tmp_path / "run")
    assert any("5 of the 12 retain examples" in note for note in done.report.notes)
    finding = next(f for f in done.report.findings if f.audit == "probability")
    assert finding.estimates["unlearned"]["retain_probability"].n == 5


def test_only_the_first_process_writes(recipe: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_job(recipe(), tmp_path / "run") is None
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_judging_only(files: Any, tmp_path: Path) -> None:
    fields = {k: v for k, v in files.fields().items() if k != "settings"}
    asked = read_recipe(None, {**fields, "original": str(files.model)}, command="audit")
    found = run_audit_job(asked, tmp_path / "audit")
    assert found.report.removal_level == "unknown"
    stored = yaml.safe_load((tmp_path / "audit" / "recipe.yaml").read_text())
    assert stored["original"] == str(files.model)
    assert "method" not in stored
    assert (tmp_path / "audit" / "report.json").read_text() == found.to_json()
    assert (tmp_path / "audit" / "report.html").is_file()
    assert run_audit_job(asked).verdict == found.verdict
    with pytest.raises(BadInput, match="is the model or lies in it"):
        run_audit_job(asked, files.model)


def test_a_run_folder_can_be_judged_as_a_model(recipe: RecipeOf, files: Any, tmp_path: Path) -> None:
    run(recipe(), tmp_path / "run")
    fields = {k: v for k, v in files.fields(model=str(tmp_path / "run")).items() if k != "settings"}
    found = run_audit_job(read_recipe(None, fields, command="audit"))
    assert found.report.removal_level == "approximate"


def test_what_is_judged_is_what_was_saved(recipe: RecipeOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = job.gather

    def gather(model: Any, *rest: Any, **options: Any) -> Any:
        seen.append(str(model))
        return original(model, *rest, **options)

    monkeypatch.setattr(job, "gather", gather)
    run(recipe(), tmp_path / "run")
    assert seen == [str(tmp_path / "run" / "model")]
