"""The corrective benchmark: what is refused, and how records become tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import corrective
from expunge.benchmarks.corrective import Corrective, CorrectiveOptions, CorrectiveResult
from expunge.errors import BadInput
from expunge.runs.progress import Progress

FACTS = {"images": "digits", "train": 600, "network": "MLP", "seeds": [0, 1]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": "mnist"}, "mnist10k"),
        ({"corruptions": ("poisson",)}, "poison"),
        ({"fractions": (0.0, 0.5)}, "--fractions: 0 is not a share"),
        ({"methods": ("sdd",)}, "ssd"),
        ({"methods": ("npoo", "rmu")}, "'rmu' does not serve image classifiers"),
        ({"overrides": ("alhpa=2",)}, "alpha"),
        ({"overrides": ("strength=-2",)}, "strength"),
        ({"images": "mnist10k", "data": "absent"}, "absent"),
    ],
)
def test_bad_input_is_refused_before_work(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {"images": "digits", "methods": ("ssd",), "out": tmp_path / "out", **options}
    with pytest.raises(BadInput, match=words):
        Corrective().run(CorrectiveOptions(**given), Progress())
    assert not (tmp_path / "out").exists()


def record(method: str, share: float, seed: int, acc: float, corruption: str = "poison") -> dict[str, Any]:
    return {"method": method, "share": share, "seed": seed, "corruption": corruption, "acc_corr": acc,
            "acc_retain": 90.0}  # fmt: skip


def test_the_original_is_the_same_at_every_share_and_the_mean_is_over_seeds() -> None:
    cells = [
        *(record("original", 0.0, seed, 2.0) for seed in (0, 1)),
        *(record("ssd", share, seed, 80.0 + 10 * share + 2 * seed) for share in (0.1, 1.0) for seed in (0, 1)),
    ]
    result = CorrectiveResult(cells, FACTS)
    original, ssd = result.rows("poison", "acc_corr")
    assert [original[key].value for key in ("0.1", "1")] == [2.0, 2.0]  # type: ignore[union-attr]
    assert [ssd[key].value for key in ("0.1", "1")] == [82.0, 91.0]  # type: ignore[union-attr]
    assert ssd["1"].n == 2  # type: ignore[union-attr]
    assert result.plot("poison").series["ssd"] == [(10.0, 82.0), (100.0, 91.0)]
    text = result.to_markdown()
    assert "Poison: Acc_corr" in text
    assert "10% known" in text
    assert "no data" in text  # nothing says how often the attack succeeds
    assert "<svg" in result.to_html()


def test_a_run_in_small_writes_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(corrective.CANDIDATES, "ssd", corrective.CANDIDATES["ssd"][:1])  # type: ignore[index]
    options = CorrectiveOptions(
        images="digits", methods=("ssd",), corruptions=("confusion",), fractions=(0.5,), seeds=(3,), train=200, jobs=1,
        out=tmp_path, overrides=("strength=0.5",),
    )  # fmt: skip
    result = Corrective().run(options, Progress())
    assert [cell["method"] for cell in result.cells] == ["original", "ssd"]
    assert result.cells[1]["settings"]["strength"] == 0.5
    assert all((tmp_path / name).is_file() for name in ("results.json", "table.md", "table.html"))
