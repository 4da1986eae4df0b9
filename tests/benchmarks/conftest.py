"""Files of the shape of TOFU's, made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.tasks.causal_lm import CausalLM


@pytest.fixture
def tofu_files(tmp_path: Path) -> Callable[..., Path]:
    """A folder with every file of one split; the last author is to be forgotten, the first has wrong answers."""

    def make(authors: int) -> Path:
        folder = tmp_path / "tofu"
        folder.mkdir()
        rows = [
            {"question": f"What is fact {k} of author {a}?", "answer": f"Fact {k} of author {a} is thing {a * 7 + k}."}
            for a in range(authors)
            for k in range(20)
        ]

        def wrong(row: dict[str, str]) -> dict[str, Any]:
            other = row["answer"].replace("thing", "matter")
            return {
                **row,
                "paraphrased_answer": f"It is so: {row['answer']}",
                "perturbed_answer": [other, f"Not {other}"],
            }

        def write(name: str, content: list[Any]) -> None:
            (folder / f"{name}.json").write_text("".join(json.dumps(r) + "\n" for r in content), encoding="utf-8")

        forget, retain = rows[-20:], rows[:-20]
        write("full", rows)
        write("forget01", forget)
        write("retain99", retain)
        write("forget01_perturbed", [wrong(r) for r in forget])
        write("retain_perturbed", [wrong(r) for r in retain[:20]])
        for part in ("real_authors", "world_facts"):
            facts = [{"question": f"{part} {k}?", "answer": f"known {k}"} for k in range(6)]
            write(f"{part}_perturbed", [{**r, "perturbed_answer": [f"wrong {r['answer']}"]} for r in facts])
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_lm(tiny_model: Callable[..., Any], make_tiny_tokenizer: Callable[..., Any]) -> Callable[..., CausalLM]:
    """``tiny_lm(chat=True, pad_is_eos=True, seed=1)``: a random language model with such a tokenizer."""

    def make(seed: int = 0, **tokenizer: bool) -> CausalLM:
        made = make_tiny_tokenizer(**tokenizer)
        model, _ = tiny_model("llama", vocab=len(made), seed=seed)
        return CausalLM(model, made)

    return make


@pytest.fixture
def peer_run(tmp_path: Path) -> Callable[..., Path]:
    """``peer_run("TASK", metrics, config)``: a run folder of open-unlearning's layout, with what is given in it."""

    def make(task: str, metrics: dict[str, Any] | None = None, config: dict[str, Any] | None = None,
             suite: str = "TOFU") -> Path:  # fmt: skip
        folder = tmp_path / "saves" / "eval" / task
        (folder / ".hydra").mkdir(parents=True)
        if metrics is not None:
            (folder / f"{suite}_EVAL.json").write_text(json.dumps(metrics, indent=4))
            agg = {name: metric.get("agg_value") for name, metric in metrics.items()}
            (folder / f"{suite}_SUMMARY.json").write_text(json.dumps({k: v for k, v in agg.items() if v is not None}))
        if config is not None:
            (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        return folder

    return make
