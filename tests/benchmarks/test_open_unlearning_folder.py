"""Run folders: what is found where, what references lead to, and what is refused in one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks.open_unlearning_folder import read_run, read_template
from expunge.errors import BadInput

METRICS = {
    "forget_quality": {"agg_value": 0.5},
    "forget_Q_A_Prob": {"agg_value": 0.1, "value_by_index": {"0": {"prob": 0.1}}},
}
CONFIG: dict[str, Any] = {
    "mode": "eval",
    "forget_split": "forget05",
    "model": {
        "model_args": {"pretrained_model_name_or_path": "owner/checkpoint"},
        "template_args": {"user_start_tag": "U"},
    },
    "eval": {
        "tofu": {"forget_split": "${forget_split}", "retain_logs_path": "${paths.root}/eval/retain/TOFU_EVAL.json"}
    },
    "paths": {"root": "saves"},
}

PeerRunFolder = Callable[..., Path]


def weights(folder: Path, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / name).write_bytes(b"")
    return folder


def test_an_evaluation(peer_run: PeerRunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, retain = peer_run("mine", METRICS, CONFIG), peer_run("retain", METRICS)
    found = read_run(folder)
    assert found.logs is not None
    assert found.logs.suite == "TOFU"
    assert found.logs.metrics == METRICS
    assert found.logs.summary == {"forget_quality": 0.5, "forget_Q_A_Prob": 0.1}
    assert found.template is not None
    assert (found.template.user_start_tag, found.template.asst_start_tag) == ("U", "Answer: ")
    assert (found.split, found.named_checkpoint, found.checkpoint) == ("forget05", "owner/checkpoint", None)
    # The path there is relative to the clone that the run was started in: a folder above this one.
    assert found.retained_logs is not None
    assert found.retained_logs.file.samefile(retain / "TOFU_EVAL.json")


def test_the_checkpoint_that_an_evaluation_names(peer_run: PeerRunFolder, tmp_path: Path) -> None:
    made = weights(tmp_path / "saves" / "unlearn" / "npo")
    config = json.loads(json.dumps(CONFIG))
    config["model"]["model_args"]["pretrained_model_name_or_path"] = "saves/unlearn/npo"
    found = read_run(peer_run("mine", METRICS, config))
    assert found.checkpoint is not None
    assert found.checkpoint.samefile(made)


def test_an_unlearning_run(tmp_path: Path) -> None:
    folder = weights(tmp_path / "saves" / "unlearn" / "npo")
    (folder / ".hydra").mkdir()
    # What it names is what it started from, although that is here.
    start = weights(tmp_path / "full")
    config = {**CONFIG, "mode": "unlearn", "model": {"model_args": {"pretrained_model_name_or_path": str(start)},
                                                     "template_args": {}}}  # fmt: skip
    (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))
    for step, value in ((5, 0.5), (40, 0.4)):
        evals = folder / f"checkpoint-{step}" / "evals"
        evals.mkdir(parents=True)
        (evals / "TOFU_EVAL.json").write_text(json.dumps({"forget_quality": {"agg_value": value}}))
    found = read_run(folder)
    assert found.checkpoint == folder
    assert found.logs is not None
    assert found.logs.metrics["forget_quality"]["agg_value"] == 0.4  # the latest, by number
    assert found.named_checkpoint == str(start)


def test_a_bare_checkpoint(tmp_path: Path) -> None:
    found = read_run(weights(tmp_path / "model"))
    assert (found.checkpoint, found.logs, found.template, found.split) == (tmp_path / "model", None, None, None)


def test_muse(peer_run: PeerRunFolder) -> None:
    config = {"model": {"template_args": {}}, "data_split": "News", "eval": {"muse": {"data_split": "${data_split}"}}}
    found = read_run(peer_run("muse", {"privleak": {"agg_value": -30.0}}, config, suite="MUSE"))
    assert found.logs is not None
    assert (found.logs.suite, found.split, found.suite) == ("MUSE", "News", "MUSE")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"forget_quality": {"agg_va', "cut off"),
        ("[1]", "holds a list"),
        ("{}", "holds no metric"),
        ('{"forget_quality": {"value": 1}}', "has no 'agg_value', only value"),
        ('{"forget_quality": 3}', "has no 'agg_value', only int"),
        ('{"mia_loss": {"agg_value": 1, "value_by_index": [1]}}', "a list as 'value_by_index'"),
        ('{"mia_loss": {"agg_value": "x"}}', "has 'x' as 'agg_value'"),
        ('{"mia_loss": {"agg_value": 1, "forget": [1]}}', "has a list, not an object, as values of 'forget'"),
        ('{"a": {"agg_value": 1, "value_by_index": {"7": [1]}}}', "has a list, not an object, as row 7"),
        ('{"a": {"agg_value": 1, "value_by_index": {"7": {"prob": [1, "x"]}}}}', "as prob in row 7"),
        ('{"a": {"agg_value": 1, "forget": {"value_by_index": {"7": {"score": "y"}}}}}', "'y' as score in row 7 of"),
        ('{"a": {"agg_value": 1, "value_by_index": {"7": {"generation": 3}}}}', "has 3 as generation in row 7"),
    ],
)
def test_damaged_results(peer_run: PeerRunFolder, content: str, says: str) -> None:
    folder = peer_run("mine", METRICS)
    (folder / "TOFU_EVAL.json").write_text(content)
    with pytest.raises(BadInput, match=says):
        read_run(folder)


def test_everything_that_is_wrong_is_said_at_once(peer_run: PeerRunFolder) -> None:
    folder = peer_run("mine", METRICS, {"model": {}})
    (folder / "TOFU_EVAL.json").write_text("{")
    (folder / "MUSE_EVAL.json").write_text("{}")
    with pytest.raises(BadInput) as caught:
        read_run(folder)
    text = str(caught.value)
    assert "both TOFU and MUSE" in text
    assert "cut off" in text
    assert "model.template_args" in text


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        read_run(tmp_path / "file")
    with pytest.raises(BadInput, match="is no run folder of open-unlearning: it holds file"):
        read_run(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a pickle"):
        read_run(weights(tmp_path / "model", "pytorch_model.bin"))


def test_circles_of_references_end(peer_run: PeerRunFolder) -> None:
    config = {"model": {"template_args": {}}, "eval": {"tofu": {"forget_split": "${a}"}}, "a": "${b}", "b": "${a}"}
    assert read_run(peer_run("mine", METRICS, config)).split is None


def test_model_config(tmp_path: Path) -> None:
    file = tmp_path / "phi.yaml"
    file.write_text('template_args:\n  apply_chat_template: False\n  user_start_tag: "Q: "\n')
    assert read_template(file).user_start_tag == "Q: "
    for text, says in (
        ("a: 1\n", "no key 'template_args'"),
        ("a: [\n", "cannot be read"),
        ("- a\n", "holds no config"),
    ):
        file.write_text(text)
        with pytest.raises(BadInput, match=says):
            read_template(file)
    with pytest.raises(BadInput, match="cannot be read"):
        read_template(tmp_path / "none.yaml")
