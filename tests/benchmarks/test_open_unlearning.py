"""The whole import on tiny models and made-up files: their own results come back, and mistakes are named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.audits.suite import run_audits
from expunge.benchmarks.open_unlearning import Asked, compare_run
from expunge.benchmarks.open_unlearning_metrics import KNOWN, UTILITY, tofu_metrics
from expunge.benchmarks.open_unlearning_observe import laid_out, observe, sets_of
from expunge.benchmarks.open_unlearning_text import Template
from expunge.benchmarks.tofu_data import load_split
from expunge.data.files import read_examples
from expunge.errors import BadInput
from expunge.runs.progress import Progress
from expunge.tasks.causal_lm import CausalLM

TEMPLATE = Template()
ROWS = 20


@dataclasses.dataclass(frozen=True)
class Made:
    """A model, a retained model, the files, unseen examples, and the run folder of an evaluation of the model."""

    model: Path
    retained: Path
    data: Path
    holdout: Path
    run: Path
    metrics: dict[str, Any]


@pytest.fixture(scope="module")
def weights(tiny_lm: Callable[..., CausalLM], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("weights")
    for seed, name in enumerate(("model", "retained")):
        task = tiny_lm(seed)
        task.model.save_pretrained(folder / name)
        task.tokenizer.save_pretrained(folder / name)
    return folder / "model", folder / "retained"


@pytest.fixture(scope="module")
def evaluated() -> dict[str, Any]:
    """The results of the evaluation, once they were made: models and rows are the same in every test."""
    return {}


@pytest.fixture
def made(
    weights: tuple[Path, Path],
    evaluated: dict[str, Any],
    tofu_files: Callable[..., Path],
    peer_run: Callable[..., Path],
    tmp_path: Path,
) -> Made:
    data = tofu_files(2)
    holdout = tmp_path / "holdout.jsonl"
    unseen = [{"question": f"What is fact {k} of nobody?", "answer": f"It is no thing {k}."} for k in range(8)]
    holdout.write_text("".join(json.dumps(row) + "\n" for row in unseen))
    if not evaluated:
        sets = sets_of(load_split(str(data), "forget01"), read_examples(holdout, role="holdout"))
        model, retained = (observe(CausalLM.load(path), TEMPLATE, sets, [], Progress()) for path in weights)
        evaluated.update(tofu_metrics(model, tofu_metrics(retained)))
    config = {"mode": "eval", "forget_split": "forget01", "model": {"template_args": dataclasses.asdict(TEMPLATE)},
              "eval": {"tofu": {"forget_split": "${forget_split}"}}}  # fmt: skip
    return Made(*weights, data, holdout, peer_run("npo", evaluated, config), evaluated)


def asked(made: Made, **more: Any) -> Asked:
    given = {"run": made.run, "model": str(made.model), "data": str(made.data), "metrics": ("extraction_strength",)}
    return Asked(**(given | more))


def test_two_checkpoints(made: Made) -> None:
    found = compare_run(
        asked(made, run=made.model, model=None, retained_run=made.retained, split="forget01", holdout=str(made.holdout),
              metrics=tuple(n for n in KNOWN if "ROUGE" not in n and n != "model_utility"))
    )  # fmt: skip
    by_name = {row.metric: row for row in found.rows}
    for name, metric in made.metrics.items():
        assert by_name[name].recomputed == pytest.approx(metric["agg_value"], rel=1e-6), name
        assert by_name[name].logged is None
    assert {row.metric for row in found.retained_rows} == set(by_name) - {"forget_quality", "privleak", "mia_reference"}
    for name in ("mia_reference", "mia_gradnorm"):
        assert by_name[name].recomputed is not None
        assert by_name[name].ours.value is not None
    for name in ("forget_Q_A_Prob", "forget_quality", "retain_Truth_Ratio", "mia_zlib"):
        assert by_name[name].ours.value is not None, name
        assert by_name[name].difference == pytest.approx(by_name[name].ours.value - by_name[name].recomputed)
    assert by_name["ra_Q_A_Prob"].ours.value is None
    # Both models are random: the end of an answer is hardly ever guessed, which is the floor there.
    floor = next(one for one in found.effects if one.name == "strength floor")
    assert floor.touched == ROWS
    assert by_name["extraction_strength"].ours.value == 0
    assert by_name["extraction_strength"].recomputed > 0
    assert any(c.metric == "extraction_strength" and c.changed for c in found.conclusions)
    first = next(one for one in found.effects if one.name == "first token")
    assert first.touched > 0
    assert found.verdict is not None
    assert found.facts["examples"] == {"forget": ROWS, "retain": 20, "real_authors": 6, "world_facts": 6, "holdout": 8}


def test_ours_are_the_numbers_of_our_audits(made: Made) -> None:
    found = compare_run(asked(made, metrics=("forget_Q_A_Prob", "forget_truth_ratio")))
    split = load_split(str(made.data), "forget01")
    task = laid_out(CausalLM.load(made.model), TEMPLATE)
    result = run_audits({"unlearned": task}, split.audit, ["probability", "truth_ratio"])
    mine = {row.metric: row.ours.value for row in found.rows}
    assert mine == {
        "forget_Q_A_Prob": result.finding("probability").estimates["unlearned"]["forget_probability"].value,
        "forget_truth_ratio": result.finding("truth_ratio").estimates["unlearned"]["forget_truth_ratio"].value,
    }


def test_a_run_with_its_results(made: Made) -> None:
    found = compare_run(asked(made, metrics=(), holdout=str(made.holdout)))
    by_name = {row.metric: row for row in found.rows}
    for name, metric in made.metrics.items():
        assert by_name[name].logged == pytest.approx(metric["agg_value"])
        # Forget quality and PrivLeak were logged against a retained model that is not given now.
        if name not in ("forget_quality", "privleak"):
            assert by_name[name].recomputed == pytest.approx(metric["agg_value"], rel=1e-5), name
    assert by_name["forget_quality"].recomputed is None
    assert by_name["forget_quality"].note.startswith("no value there")
    assert not found.retained_rows
    assert all(by_name[name].recomputed is not None for name in (*UTILITY, "model_utility"))
    leak = next(one for one in found.conclusions if one.metric == "privleak")
    assert leak.ours.word == "no number"
    assert leak.changed
    assert {row.metric for row in found.checks} == set(made.metrics)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["facts"]["split"] == "forget01"


def test_results_of_the_retained_model_are_enough_for_theirs(made: Made, peer_run: Any) -> None:
    retained = peer_run("retain99", made.metrics)
    found = compare_run(asked(made, retained_run=retained, metrics=("forget_quality",)))
    (row,) = found.rows
    assert row.recomputed == pytest.approx(1.0)  # the very same truth ratios
    assert row.ours.value is None
    assert not found.conclusions


def test_results_alone_are_checked_and_nothing_is_recomputed(made: Made) -> None:
    found = compare_run(Asked(run=made.run))
    assert "give --model" in found.facts["not_recomputed"]
    assert not found.rows
    checked = {row.metric: row.agrees for row in found.checks}
    # Forget quality does not follow from this file alone.
    assert checked.pop("forget_quality") is None
    assert checked.pop("privleak") is False
    assert all(checked.values())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"metrics": ("extraction_strenght",)}, "did you mean extraction_strength"),
        ({"metrics": ("mia_min_k",)}, "give --holdout FILE"),
        ({"metrics": ("privleak",)}, "give --holdout FILE"),
        ({"metrics": ("mia_reference",)}, "needs the weights of the model trained without"),
        ({"metrics": ("forget_quality",)}, "as the second argument"),
        ({"split": "forget02"}, "'forget02' is not a TOFU split"),
        ({"split": "forget10"}, "forget10.json"),
        ({"run": None, "model": None}, "names nothing"),
        ({"retained_run": Path("nowhere")}, "nowhere: does not exist"),
        ({"model": "nowhere"}, "model nowhere"),
        ({"run": None}, "--split: is missing"),
        ({"data": "nowhere"}, "nowhere is not a folder"),
        ({"holdout": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model_config": Path("nowhere.yaml")}, "nowhere.yaml: cannot be read"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_mistakes(made: Made, change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        compare_run(asked(made, **change))
    assert says in str(caught.value)


def test_results_of_another_split(made: Made, peer_run: Any) -> None:
    log = json.loads(json.dumps(made.metrics))
    del log["forget_Q_A_Prob"]["value_by_index"]["19"]
    with pytest.raises(BadInput, match="has 19 rows, and the split has 20"):
        compare_run(asked(made, run=peer_run("other", log), split="forget01"))


def test_mistakes_are_said_together(made: Made) -> None:
    with pytest.raises(BadInput) as caught:
        compare_run(asked(made, run=Path("nowhere"), retained_run=Path("neither"), metrics=("x",)))
    assert [p.where for p in caught.value.problems] == ["nowhere", "neither", "--metric"]


def test_a_config_without_weights_or_results(made: Made, peer_run: Any) -> None:
    config = {
        "mode": "eval",
        "model": {"model_args": {"pretrained_model_name_or_path": "owner/name"}, "template_args": {}},
    }
    with pytest.raises(BadInput, match="neither results nor weights; its config names owner/name"):
        compare_run(Asked(run=peer_run("bare", None, config)))
