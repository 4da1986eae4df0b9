"""Each method of a benchmark gets the settings that it knows."""

from __future__ import annotations

from expunge.benchmarks.method_settings import method_settings
from expunge.errors import Problem


def test_a_method_gets_what_it_knows_and_the_command_line_wins() -> None:
    problems: list[Problem] = []
    given = {"beta": 0.5, "stop": {"every": 7}}
    found = method_settings(["npo", "finetune"], given, {"batch_size": 4}, {"npo": {"beta": 2.0}}, 2, problems)
    assert not problems
    assert found["npo"]["beta"] == 0.5
    assert "beta" not in found["finetune"]
    assert {chosen["batch_size"] for chosen in found.values()} == {4}
    assert found["npo"]["stop"] == {"every": 7, "forget_target": "oracle", "keep": "closest"}


def test_own_settings_of_small_models_do_not_reach_a_model_of_the_users() -> None:
    own = {"npo": {"beta": 2.0}}
    assert method_settings(["npo"], {}, {"batch_size": 4}, own, 2, [])["npo"]["beta"] == 2.0
    assert "beta" not in method_settings(["npo"], {}, {}, own, 2, [])["npo"]


def test_a_setting_of_no_method_is_named() -> None:
    problems: list[Problem] = []
    method_settings(["finetune"], {"betta": 1}, {}, {}, 1, problems)
    assert [problem.where for problem in problems] == ["--set betta"]
