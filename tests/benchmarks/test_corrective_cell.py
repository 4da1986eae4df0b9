"""A corrupted training set in small: what is measured, what is chosen, and that a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks.corrective_cell import (
    CANDIDATES,
    Setting,
    choose,
    make_case,
    measure_damage,
    run_setting,
    train_original,
)
from expunge.data import scenarios
from expunge.errors import BadInput

SHORT = (("epochs", 12), ("batch_size", 32), ("learning_rate", 2e-3))


def setting(corruption: Any = "poison", seed: int = 0) -> Setting:
    return Setting("digits", None, corruption, seed, 600, SHORT, (64,))


@pytest.mark.parametrize(("corruption", "count"), [("poison", 30), ("confusion", 50)])
def test_what_is_corrupted_is_known(corruption: str, count: int) -> None:
    case = make_case(setting(corruption))
    flags = case.train["corrupted"]
    assert sum(flags) == count
    wrong = [a != b for a, b in zip(case.train["label"], case.train["clean_label"], strict=True)]
    assert wrong == list(flags)
    assert len(case.train) == 600
    assert (case.triggered is not None) == (corruption == "poison")


def test_a_poisoned_model_follows_the_patch_and_a_clean_one_does_not() -> None:
    case = make_case(setting())
    bad = measure_damage(case, train_original(case))
    request = scenarios.corrupted(case.train, 1.0, 0, unseen=case.test)
    clean, _, seconds = choose(case.start, request, "retrain", [dict(SHORT)], 0)
    good = measure_damage(case, clean)
    assert bad["attack_success"] > good["attack_success"] + 30
    assert good["acc_corr"] > bad["acc_corr"] + 20
    assert seconds > 0


def test_the_choice_never_asks_the_affected_domain_and_passes_over_what_is_refused() -> None:
    """Dampening by 1e-6 of hardly any weight forgets nothing, a low alpha does: the latter is taken."""
    case = make_case(setting())
    original = train_original(case)
    request = scenarios.corrupted(case.train, 0.5, 0, unseen=case.test)
    candidates = [{"alpha": 1e6}, {"alpha": 15.0, "strength": 1.0}, {"alpha": 1.0, "strength": 0.1}]
    model, chosen, _ = choose(original, request, "ssd", candidates, 0)
    assert chosen == candidates[2]
    assert measure_damage(case, model)["acc_corr"] > measure_damage(case, original)["acc_corr"]
    with pytest.raises(BadInput, match="alpha"):
        choose(original, request, "ssd", candidates[:1], 0)


def test_a_stopped_run_goes_on_with_what_is_there(tmp_path: Path) -> None:
    methods = {"ssd": CANDIDATES["ssd"][:1]}
    first = run_setting(setting("confusion"), (0.5,), methods, tmp_path)
    assert [record["method"] for record in first] == ["original", "ssd"]
    assert first[1]["known"] == 25
    (file,) = tmp_path.glob("ssd-*.json")
    stored = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**stored, "acc_corr": -1.0}), encoding="utf-8")
    again = run_setting(setting("confusion"), (0.5,), methods, tmp_path)
    assert again[1]["acc_corr"] == -1.0  # read, not measured again
    assert again[0] == first[0]
    (original,) = tmp_path.glob("original-*.json")
    original.unlink()
    assert run_setting(setting("confusion"), (0.5,), methods, tmp_path)[0] == first[0]
