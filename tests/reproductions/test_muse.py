from __future__ import annotations

from pathlib import Path

import pytest

from expunge.reproductions.base import Workbench
from expunge.reproductions.muse import METHODS, MuseReproduction, biographies


def test_the_corpus_names_nobody_of_another_quarter() -> None:
    corpus = biographies(8, 3)
    parts = [corpus.retain1, corpus.retain2, corpus.forget, corpus.holdout]
    assert [len(part) for part in parts] == [8] * 4
    assert [text for part in corpus.sust for text in part] == list(corpus.forget)
    names = [{" ".join(text.split()[:2]) for text in part} for part in parts]
    assert not set.intersection(*names)
    for question, answer in corpus.forget_qa:
        assert any(answer in text for text in corpus.forget), question
    assert len(corpus.forget_qa) == len(corpus.retain_qa) == 32


def numbers(privleak: float, nll: float, kept: float = 90.0) -> dict[str, float]:
    out = {
        "original_verbmem": 100.0, "original_knowmem_f": 100.0, "original_forget_nll": 0.1, "retrain_verbmem": 10.0,
        "retrain_knowmem_f": 5.0, "retrain_forget_nll": 3.1, "retrain_privleak": 2.0,
    }  # fmt: skip
    for method in METHODS:
        for name in (method, f"{method}_request_4"):
            out |= {f"{name}_privleak": privleak, f"{name}_forget_nll": nll}
        out |= {
            f"{method}_verbmem": 5.0, f"{method}_knowmem_f": 0.0, f"{method}_request_1_knowmem_r": 90.0,
            f"{method}_request_4_knowmem_r": kept,
        }  # fmt: skip
    return out


@pytest.mark.parametrize(
    ("run", "holds"),
    [
        (numbers(90.0, 9.0, 40.0), [True, True, False, True]),  # nobody is private: nothing shows who could be
        (numbers(5.0, 3.0), [True, False, True, False]),
        (numbers(5.0, 9.0), [True, False, False, False]),
    ],
)
def test_each_point_is_judged_on_its_own(run: dict[str, float], holds: list[bool]) -> None:
    checks = MuseReproduction().judge([run, run])
    assert [check.holds for check in checks] == holds


@pytest.mark.slow
def test_the_quick_version(tmp_path: Path) -> None:
    found = MuseReproduction().run(0, Workbench(tmp_path / "seed", tmp_path / "shared", quick=True))
    assert found["original_auc"] > 0.8
    assert found["grad_diff_request_4_forget_nll"] > found["original_forget_nll"]
