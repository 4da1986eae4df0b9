"""Evaluates a model with open-unlearning's own functions, so that an import can be held against them.

    python benchmarks/import_parity.py --open-unlearning DIR --model M --retained R --split forget05 --out RUN \
        --data FOLDER --model-config FILE [--holdout FILE]
    python benchmarks/import_parity.py --open-unlearning DIR --model M --retained R --split News --out RUN \
        --data MUSE_FOLDER --model-config FILE

DIR is a checkout of locuslab/open-unlearning. Its preprocessing, collator, metrics and attacks are read from there and
run as they are, but for its imports and its configuration by hydra; nothing of them is part of Expunge. Two run folders
come out, RUN/retained and RUN/model, each with ``TOFU_EVAL.json`` (or ``MUSE_EVAL.json``), its summary and
``.hydra/config.yaml`` as its evaluator leaves them. Then:

    expunge import open-unlearning RUN/model RUN/retained --model M --reference R
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import warnings
import zlib
from collections import defaultdict
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Union

import datasets
import numpy as np
import scipy
import sklearn.metrics
import torch
import yaml
from rouge_score import rouge_scorer
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from expunge.benchmarks.open_unlearning_metrics import UTILITY

BATCH = 32
GENERATION = {"do_sample": False, "top_p": None, "temperature": None, "max_new_tokens": 200, "use_cache": True}
ATTACKS = {"mia_loss": ("LOSSAttack", {}), "mia_zlib": ("ZLIBAttack", {}), "mia_min_k": ("MinKProbAttack", {"k": 0.4}),
           "mia_min_k_plus_plus": ("MinKPlusPlusAttack", {"k": 0.4}),
           "mia_gradnorm": ("GradNormAttack", {"p": 2})}  # fmt: skip


def theirs(checkout: Path) -> dict[str, Any]:
    """Run the functions and classes of their files in one scope, but none of their imports."""
    from torch.utils.data import DataLoader

    scope: dict[str, Any] = {
        "torch": torch, "nn": torch.nn, "np": np, "sc": scipy, "warnings": warnings, "IGNORE_INDEX": -100, "Enum": Enum,
        "defaultdict": defaultdict, "DataLoader": DataLoader, "rouge_scorer": rouge_scorer, "tqdm": lambda x, **_: x,
        "logger": logging.getLogger("theirs"), "OmegaConf": SimpleNamespace(to_container=lambda x, resolve: dict(x)),
        "ks_2samp": scipy.stats.ks_2samp, "roc_auc_score": sklearn.metrics.roc_auc_score,
        "unlearning_metric": lambda name: lambda function: function,
        "transformers": SimpleNamespace(PreTrainedTokenizer=Any),
        "StoppingCriteria": StoppingCriteria, "StoppingCriteriaList": StoppingCriteriaList, "Dataset": object,
        "datasets": SimpleNamespace(load_dataset=datasets.Dataset.from_list), "PreTrainedTokenizer": Any, "zlib": zlib,
        "Any": Any, "Dict": dict, "List": list, "Union": Union, "Sequence": list,
    }  # fmt: skip
    files = ("data/utils", "data/collators", "evals/metrics/utils", "evals/metrics/memorization",
             "evals/metrics/privacy", "evals/metrics/utility", "evals/metrics/mia/all_attacks",
             "evals/metrics/mia/loss", "evals/metrics/mia/min_k", "evals/metrics/mia/min_k_plus_plus",
             "evals/metrics/mia/zlib", "evals/metrics/mia/utils", "evals/metrics/mia/gradnorm",
             "evals/metrics/mia/reference", "data/pretraining")  # fmt: skip
    for name in files:
        path = checkout / "src" / f"{name}.py"
        kept: list[ast.stmt] = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        exec(compile(ast.Module(kept, []), str(path), "exec"), scope)
    return scope


class Evaluation:
    """One model under their functions.

    Args:
        scope: their functions.
        path: the model.
        template: template_args of a model config.
        rows: set -> rows of the published file.
    """

    def __init__(
        self, scope: dict[str, Any], path: str, template: dict[str, Any], rows: dict[str, list[dict[str, Any]]]
    ):
        self.scope, self.template, self.rows = scope, template, rows
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        chat = self.tokenizer.apply_chat_template
        # Their version of the library gives ids; later ones give them inside a dictionary.
        self.tokenizer.apply_chat_template = lambda *a, **k: chat(
            *a, **k, **({"return_dict": False} if k["tokenize"] else {})
        )

    def data(self, name: str, answer: str = "answer", generate: bool = False) -> list[dict[str, Any]]:
        """Their QADataset, item by item."""
        out: list[dict[str, Any]] = []
        for index, row in enumerate(self.rows[name]):

            def item(text: str, index: int = index, question: str = row["question"]) -> dict[str, Any]:
                made = self.scope["preprocess_chat_instance"](
                    self.tokenizer, self.template, [question], [text], 512, generate
                )
                return {**made, "index": index}

            given = row[answer]
            out.append(item(given) if isinstance(given, str) else {i: item(text) for i, text in enumerate(given)})
        return out

    def collate(self, side: str = "right") -> Any:
        """Their collator."""
        return self.scope["DataCollatorForSupervisedDataset"](self.tokenizer, side, "index")

    def call(self, metric: str, data: Any = None, side: str = "right", **more: Any) -> dict[str, Any]:
        """One of their metric functions."""
        given = {
            "data": data,
            "collators": self.collate(side),
            "batch_size": BATCH,
            "tokenizer": self.tokenizer,
            **more,
        }
        return dict(self.scope[metric](self.model, **given))

    def all(self, retained: dict[str, Any] | None, reference: Any) -> dict[str, Any]:
        """Every metric that Expunge recomputes, under the names of their configuration."""
        out: dict[str, Any] = {}
        for short in ("forget", "retain", "ra", "wf"):
            paraphrased = short in ("forget", "retain")
            out[f"{short}_Q_A_Prob"] = self.call("probability", self.data(short))
            out[f"{short}_Q_A_PERT_Prob"] = self.call("probability", self.data(short, "perturbed_answer"))
            out[f"{short}_Q_A_ROUGE"] = self.call("rouge", self.data(short, generate=True), "left",
                                                  generation_args=GENERATION, rouge_type="rougeL_recall")  # fmt: skip
            if paraphrased:
                out[f"{short}_Q_A_PARA_Prob"] = self.call("probability", self.data(short, "paraphrased_answer"))
            correct = out[f"{short}_Q_A_PARA_Prob" if paraphrased else f"{short}_Q_A_Prob"]
            both = {"correct": correct, "wrong": out[f"{short}_Q_A_PERT_Prob"]}
            if not paraphrased:
                out[f"{short}_Q_A_Prob_normalised"] = self.call("probability_w_options", pre_compute=both)
            name = "forget_truth_ratio" if short == "forget" else f"{short}_Truth_Ratio"
            aggregator = "closer_to_1_better" if short == "forget" else "true_better"
            out[name] = self.call("truth_ratio", pre_compute=both, aggregator=aggregator)
        out["extraction_strength"] = self.call("extraction_strength", self.data("forget"))
        out["exact_memorization"] = self.call("exact_memorization", self.data("forget"))
        out["model_utility"] = self.call("hm_aggregate", pre_compute={name: out[name] for name in UTILITY})
        logs = {"reference_logs": {"retain_model_logs": {"retain": (retained or {}).get("forget_truth_ratio")}}}
        out["forget_quality"] = self.call("ks_test", pre_compute={"forget": out["forget_truth_ratio"]},
                                          **(logs if retained else {}))  # fmt: skip
        if "holdout" in self.rows:
            sides = {side: self.data(side) for side in ("forget", "holdout")}
            out |= self.attacks(sides, retained, reference)
        return dict(sorted(out.items()))

    def attacks(self, sides: dict[str, Any], retained: dict[str, Any] | None, reference: Any) -> dict[str, Any]:
        """Every membership attack, and PrivLeak."""
        out = {}
        for name, (attack, more) in ATTACKS.items():
            given = {"tokenizer": self.tokenizer} if "zlib" in name else more
            batch = 1 if name == "mia_gradnorm" else BATCH
            out[name] = self.scope["mia_auc"](self.scope[attack], self.model, sides, self.collate(), batch, **given)
        if reference is not None:
            out["mia_reference"] = self.scope["mia_auc"](
                self.scope["ReferenceAttack"], self.model, sides, self.collate(), BATCH, reference_model=reference
            )
        logs = {"reference_logs": {"retain_model_logs": {"retain": (retained or {}).get("mia_min_k")}}}
        out["privleak"] = self.call("privleak", pre_compute={"forget": out["mia_min_k"]}, ref_value=0.5,
                                    **(logs if retained else {}))  # fmt: skip
        return out

    def muse(self, retained: dict[str, Any] | None, reference: Any) -> dict[str, Any]:
        """Every metric of MUSE that Expunge recomputes."""
        out: dict[str, Any] = {}
        for kept in ("forget", "retain"):
            shots = self.rows[f"{kept}_qa_icl"]
            data = []
            for index, row in enumerate(self.rows[f"{kept}_qa"]):
                asked = [one["question"] for one in [*shots, row]]
                told = [one["answer"] for one in [*shots, row]]
                made = self.scope["preprocess_chat_instance"](self.tokenizer, self.template, asked, told, 512, True)
                data.append({**made, "index": index})
            generation = {**GENERATION, "max_new_tokens": 32, "stopwords": ["\n\n", "\nQuestion", "Question:"]}
            out[f"{kept}_knowmem_ROUGE"] = self.call(
                "rouge", data, "left", generation_args=generation, rouge_type="rougeL_f1", batch_size=16
            )

        def texts(rows: list[dict[str, Any]], key: str, **more: Any) -> Any:
            given = {"path": rows}
            made = self.scope["CompletionDataset"](given, self.template, self.tokenizer, text_key=key, **more)
            return [made[k] for k in range(len(rows))]

        recited = self.rows["verbmem"]
        generation = {**GENERATION, "max_new_tokens": 128}
        out["forget_verbmem_ROUGE"] = self.call(
            "rouge", texts(recited, "gt", insert_space=True, predict_with_generate=True), "left",
            generation_args=generation, rouge_type="rougeL_f1", batch_size=8,
        )  # fmt: skip
        for name in ("extraction_strength", "exact_memorization"):
            out[name] = self.call(name, texts(recited, "gt", insert_space=True), batch_size=8)
        sides = {side: texts(self.rows[f"private_{side}"], "text") for side in ("forget", "holdout")}
        return dict(sorted({**out, **self.attacks(sides, retained, reference)}.items()))


def write(folder: Path, found: dict[str, Any], template: dict[str, Any], split: str, path: str, suite: str) -> None:
    """Leave results and config as their evaluator does."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / f"{suite}_EVAL.json").write_text(json.dumps(found, indent=4), encoding="utf-8")
    summary = {name: metric["agg_value"] for name, metric in found.items() if metric["agg_value"] is not None}
    (folder / f"{suite}_SUMMARY.json").write_text(json.dumps(summary, indent=4), encoding="utf-8")
    key = "data_split" if suite == "MUSE" else "forget_split"
    config = {"mode": "eval", key: split, "eval": {suite.lower(): {key: f"${{{key}}}"}},
              "model": {"model_args": {"pretrained_model_name_or_path": path}, "template_args": template}}  # fmt: skip
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def main() -> None:
    """Evaluate the retained model, then the model against it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("open-unlearning", "model", "retained", "split", "data", "out", "model-config"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--holdout")
    args = parser.parse_args()

    def lines(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    folder, suite = Path(args.data), "MUSE" if args.split in ("News", "Books") else "TOFU"
    if suite == "MUSE":
        files = {"forget_qa": "knowmem/forget_qa", "forget_qa_icl": "knowmem/forget_qa_icl",
                 "retain_qa": "knowmem/retain_qa", "retain_qa_icl": "knowmem/retain_qa_icl",
                 "verbmem": "verbmem/forget", "private_forget": "privleak/forget",
                 "private_holdout": "privleak/holdout"}  # fmt: skip
        rows = {name: json.loads((folder / f"{file}.json").read_text(encoding="utf-8")) for name, file in files.items()}
        for name in ("private_forget", "private_holdout"):
            rows[name] = [row if isinstance(row, dict) else {"text": row} for row in rows[name]]
    else:
        files = {"forget": f"{args.split}_perturbed", "retain": "retain_perturbed", "ra": "real_authors_perturbed",
                 "wf": "world_facts_perturbed"}  # fmt: skip
        rows = {short: lines(folder / f"{name}.json") for short, name in files.items()}
        if args.holdout:
            rows["holdout"] = lines(Path(args.holdout))
    template = yaml.safe_load(Path(args.model_config).read_text(encoding="utf-8"))["template_args"]
    scope, retained, reference = theirs(Path(args.open_unlearning)), None, None
    for name, path in (("retained", args.retained), ("model", args.model)):
        evaluation = Evaluation(scope, path, template, rows)
        evaluate = evaluation.muse if suite == "MUSE" else evaluation.all
        retained = evaluate(retained, reference)
        write(Path(args.out) / name, retained, template, args.split, path, suite)
        reference = evaluation.model


if __name__ == "__main__":
    main()
