"""Our objectives in parity mode against the authors' own code, number by number.

    python benchmarks/parity.py --open-unlearning DIR [--flat DIR] [--uld DIR] [--wmdp DIR] [--concept-vectors DIR]
        [--draws 40] [--json FILE] [--table FILE]

DIR are checkouts of locuslab/open-unlearning, UCSC-REAL/FLAT, UCSB-NLP-Chang/ULD, centerforaisafety/wmdp and
yihuaihong/ConceptVectors. Their losses and trainers are read from there and run as they are (trainers without the
library's base class); nothing of them is part of Expunge. What is not about a language model's loss is compared by
parity_predictors.py. Both
sides get the same random logits: 1 to 4 examples of unequal length, padded on either side, vocabularies of 101 and 300,
now and then with ties or with an example without any label. Per objective, precision and size of the logits the table
has the largest deviation of the loss and of its gradient by the logits, |a - b| / (1 + |b|). Where one side is infinite
or not a number, the other has to be as well.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods.base import settle
from expunge.methods.language.flat import flat_reference_loss
from expunge.methods.language.rmu import control_vector
from expunge.methods.language.uld import uld_loss
from expunge.methods.run import METHODS
from expunge.runs import facts
from expunge.training.padded import Padded, objective_value

SIZES = (1.0, 30.0, 1e4)
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
TRAINERS = ("grad_ascent", "grad_diff", "npo", "dpo", "simnpo", "wga", "satimp", "undial", "ceu", "pdu", "rmu")
DIVERGENCES = {
    "tv": "Total-Variation", "kl": "KL", "js": "Jenson-Shannon", "pearson": "Pearson", "jeffrey": "Jeffrey"
}  # fmt: skip


def definitions(path: Path, scope: dict[str, Any]) -> None:
    """Run the functions and classes of a file in a scope, but none of its imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    kept: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    exec(compile(ast.Module(kept, []), str(path), "exec"), scope)


def scope() -> dict[str, Any]:
    """What the authors' files import, with a base class that does nothing in the trainer's place."""
    names = {"torch": torch, "nn": nn, "F": F, "copy": copy, "re": re, "math": math, "Any": Any, "Dict": dict}
    return {**names, "UnlearnTrainer": object, "TrainerCallback": object, "deepspeed": None, "partial": None,
            "np": None, "random": None, "AutoModelForCausalLM": None, "Trainer": object}  # fmt: skip


class Fixed(nn.Module):
    """A language model whose logits for three batches are given; a batch is known by its first token."""

    def __init__(self, logits: Sequence[Tensor]):
        super().__init__()
        self.given = logits

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> SimpleNamespace:
        """Return logits, in float32 at least as the library's models do, and the mean loss of all labels."""
        logits = exact(self.given[int(input_ids[0, 0])])
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss)


def exact(logits: Tensor) -> Tensor:
    """Return logits in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Draw:
    """One set of random inputs: forget, retain and alternative batches, and a model before unlearning."""

    def __init__(self, number: int, dtype: torch.dtype, size: float):
        luck = torch.Generator().manual_seed(number)
        self.number, self.vocabulary = number, (101, 300)[number % 2]
        self.examples, self.labels = 1 + number % 4, []
        logits: list[Tensor] = []
        for k in range(3):
            shape = (self.examples, 6 + (number + k) % 5, self.vocabulary)
            drawn = size * torch.randn(shape, generator=luck, dtype=torch.float64)
            logits.append((drawn.round() if number % 5 == 0 else drawn).to(dtype))
            self.labels.append(self._labels(shape[:2], luck))
        self.unlabelled = number % 3 == 0 and self.examples > 1
        if self.unlabelled:
            self.labels[0][-1] = -100
        before = [z.float() + 0.5 * torch.randn(z.shape, generator=luck) for z in logits]
        self.before = [z.to(dtype) for z in before]
        self.leaves = [z.requires_grad_() for z in logits]
        self.model, self.reference = Fixed(self.leaves), Fixed(self.before)

    def _labels(self, shape: tuple[int, int], luck: torch.Generator) -> Tensor:
        labels = torch.full(shape, -100)
        for row in labels:
            length = int(torch.randint(4, shape[1] + 1, (1,), generator=luck))
            # Two answer tokens at least, and a first token that is none.
            start = int(torch.randint(1, length - 1, (1,), generator=luck))
            first = shape[1] - length if self.number % 2 else 0
            row[first + start : first + length] = torch.randint(self.vocabulary, (length - start,), generator=luck)
        return labels

    def inputs(self, k: int) -> dict[str, Tensor]:
        """Return what their trainers are given of a batch."""
        labels = self.labels[k]
        return {"input_ids": torch.full_like(labels, k), "attention_mask": torch.ones_like(labels), "labels": labels}

    def batches(self, blocks: bool = False) -> Any:
        """Return what we are given; the logits stand in for block outputs where those are read."""
        made = []
        for labels, now, then in zip(self.labels, self.leaves, self.before, strict=True):
            given = {"reference_logits": then} if not blocks else {"blocks": {7: now}, "reference_blocks": {7: then}}
            made.append(Padded(now, labels, **given))
        return dict(zip(("forget", "retain", "alternative"), made, strict=True))


Pair = Callable[[Draw], tuple[Tensor, Tensor]]


def ours(name: str, draw: Draw, **settings: Any) -> Tensor:
    """Return a method's whole objective in parity mode."""
    parity = {"parity": True} if "parity" in METHODS.get(name).Config.model_fields else {}
    method: Any
    method, _ = settle(METHODS.get(name), {**parity, **settings})
    return objective_value(method.objective(), draw.batches(blocks=name == "rmu"))


def of_open_unlearning(root: Path) -> dict[str, Pair]:
    """Every trainer of open-unlearning, with both of its retain losses."""
    names = scope()
    definitions(root / "src" / "trainer" / "utils.py", names)
    for trainer in TRAINERS:
        definitions(root / "src" / "trainer" / "unlearn" / f"{trainer}.py", names)

    def theirs(trainer: str, draw: Draw, **attributes: Any) -> Tensor:
        made = object.__new__(names[trainer])
        usual = {"model": draw.model, "ref_model": draw.reference, "gamma": 1.0, "alpha": 1.0}
        for key, value in {**usual, "retain_loss_type": "NLL", **attributes}.items():
            setattr(made, key, value)
        forget: Any = draw.inputs(0)
        if trainer == "DPO":
            forget = {"original": forget, "alternate": draw.inputs(2)}
        found: Tensor = made.compute_loss(draw.model, {"forget": forget, "retain": draw.inputs(1)})
        return found

    def rmu(draw: Draw) -> tuple[Tensor, Tensor]:
        def outputs(model: Fixed, inputs: Mapping[str, Tensor], *_: Any, **__: Any) -> tuple[Tensor, None]:
            return exact(model.given[int(inputs["input_ids"][0, 0])]), None

        steered = control_vector(draw.vocabulary, 20.0, 0)[None, None]
        own = {"forward_with_cache": outputs, "control_vec": steered, "steering_coeff": 20.0}
        modules = {"model_module": None, "ref_module": None, "retain_loss_type": "EMBED_DIFF"}
        return ours("rmu", draw), theirs("RMU", draw, **own, **modules)

    def ceu(draw: Draw) -> tuple[Tensor, Tensor]:
        return ours("ceu", draw), theirs("CEU", draw, ignore_first_n_answer_tokens=1)

    pairs: dict[str, Pair] = {
        "gradient_ascent": lambda d: (ours("gradient_ascent", d), theirs("GradAscent", d)), "rmu": rmu, "ceu": ceu
    }  # fmt: skip
    for kind in ("NLL", "KL"):
        for name, trainer, mine, own in _retaining():
            pairs[f"{name}, {kind}"] = lambda d, n=name, t=trainer, m=mine, o=own, k=kind: (  # type: ignore[misc]
                ours(n, d, retain=k.lower(), **m(d)),
                theirs(t, d, retain_loss_type=k, **o(d)),
            )
    return pairs


def _retaining() -> list[tuple[str, str, Callable[[Draw], dict[str, Any]], Callable[[Draw], dict[str, Any]]]]:
    """Objectives with a retain loss: our name, theirs, and both sides' hyperparameters, which vary with the draw."""

    def beta(draw: Draw) -> float:
        return (0.1, 1.0, 4.5)[draw.number % 3]

    def small(draw: Draw) -> float:
        return (0.05, 1.0, 5.0)[draw.number % 3]

    log: dict[str, Any] = {"log": lambda _: None, "loss_names": ["forget", "retain"], "retain_loss_eps": 0.0}
    dual = {**log, "preferences": [1.0, 7.0], "primal_dual": False, "can_update": False, "dual_update_upon": "step"}
    return [
        ("grad_diff", "GradDiff", lambda _: {}, lambda _: {}),
        ("npo", "NPO", lambda d: {"beta": beta(d)}, lambda d: {"beta": beta(d)}),
        ("dpo", "DPO", lambda d: {"beta": beta(d)}, lambda d: {"beta": beta(d)}),
        ("altpo", "DPO", lambda d: {"beta": beta(d)}, lambda d: {"beta": beta(d)}),
        (
            "simnpo", "SimNPO", lambda d: {"beta": beta(d), "margin": 0.3},
            lambda d: {"beta": beta(d), "delta": 0.3, "gamma": 0.125},
        ),
        ("wga", "WGA", lambda d: {"beta": small(d)}, lambda d: {"beta": small(d)}),
        ("satimp", "SatImp", lambda d: {"beta1": small(d)}, lambda d: {"beta1": small(d), "beta2": 1.0, "gamma": 0.1}),
        ("undial", "UNDIAL", lambda _: {"retain_weight": 1.0}, lambda _: {"beta": 10.0}),
        ("pdu", "PDU", lambda _: {"retain_weight": 7.0}, lambda _: dual),
    ]  # fmt: skip


def of_flat(root: Path) -> dict[str, Pair]:
    """FLAT's contrastive loss, for the divergences that point the right way."""
    names = scope()
    definitions(root / "dataloader.py", names)

    def pair(draw: Draw, divergence: str) -> tuple[Tensor, Tensor]:
        (forget, _, template), (wrong, _, right) = draw.leaves, draw.labels
        mine = flat_reference_loss(template, right, forget, wrong, divergence)
        loss = names["ProbLossStable"]()
        sides = [
            torch.stack([loss(z[:-1], y[1:]) for z, y in zip(exact(logits), labels, strict=True)]).mean()
            for logits, labels in ((forget, wrong), (template, right))
        ]
        return mine, names["get_contrastive_loss"](*sides, DIVERGENCES[divergence])

    return {f"flat, {name}": lambda d, n=name: pair(d, n) for name in DIVERGENCES}  # type: ignore[misc]


def of_uld(root: Path) -> dict[str, Pair]:
    """ULD's loss of the assistant."""
    names = scope()
    definitions(root / "uld" / "model" / "forget_losses.py", names)

    def pair(draw: Draw) -> tuple[Tensor, Tensor]:
        (logits, retain, _), (labels, _, _) = draw.leaves, draw.labels
        known = F.cross_entropy(exact(logits)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        mine = uld_loss(known[labels[:, 1:].flatten() != -100], retain, 5.0, parity=True)
        uniform = names["UniformLossFunc"](draw.model, draw.inputs(1)["input_ids"], None)
        return mine, draw.model(**draw.inputs(0)).loss + 5.0 * uniform

    return {"uld": pair}


def of_wmdp(root: Path) -> dict[str, Pair]:
    """RMU as its authors run it, up to the step of the optimiser; the logits stand in for block outputs."""
    names = scope()
    names["tqdm"] = SimpleNamespace(tqdm=lambda **_: contextlib.nullcontext())
    for file in ("utils.py", "unlearn.py"):
        definitions(root / "rmu" / file, names)

    class Reached(Exception):
        """The loss is there, and the step that would follow is not taken."""

    class Block(nn.Module):
        """A model that is one block; a batch is known by its number."""

        def __init__(self, given: Sequence[Tensor]):
            super().__init__()
            self.given, self.dtype, self.device = given, exact(given[0]).dtype, given[0].device
            self.config = SimpleNamespace(hidden_size=given[0].shape[-1])

        def forward(self, number: int) -> Tensor:
            return exact(self.given[number])

        def parameters(self, recurse: bool = True) -> Any:
            return iter(self.given)

    class Numbers(dict[str, Any]):
        """What their tokenizer would return."""

        def to(self, device: torch.device) -> Numbers:
            return self

    def tokenizer(number: int, **_: Any) -> Numbers:
        return Numbers(number=number)

    def optimizer(*_: Any, **__: Any) -> SimpleNamespace:
        def zero_grad() -> None:
            raise Reached

        return SimpleNamespace(zero_grad=zero_grad)

    def pair(draw: Draw) -> tuple[Tensor, Tensor]:
        losses: list[Tensor] = []
        squared = F.mse_loss

        def heard(now: Tensor, wanted: Tensor) -> Tensor:
            losses.append(squared(now, wanted))
            return losses[-1]

        direction = control_vector(draw.vocabulary, 1.0, 0)[None, None]
        # The last of their arguments to be read are names that only their command line fills.
        asked = SimpleNamespace(
            layer_ids=[], param_ids=[], lr=0.0, module_str="{model_name}", layer_id=7, steering_coeff_list=[20.0],
            max_num_batches=1, alpha=[100.0], verbose=False,
        )  # fmt: skip
        tokenizer.truncation_side = "right"  # type: ignore[attr-defined]
        names.update(AdamW=optimizer, print=lambda *_: None)
        with (
            mock.patch.object(torch, "rand", lambda *_, dtype, device: direction.to(dtype)),
            mock.patch.object(F, "mse_loss", heard),
            contextlib.suppress(Reached),
            warnings.catch_warnings(action="ignore"),  # of a vector that is meant to broadcast
        ):
            names["run_rmu"](Block(draw.leaves), Block(draw.before), tokenizer, [[0]], [[1]], asked)
        # Their weight of the retain loss is multiplied in place.
        return ours("rmu", draw, parity=False, positions="all", retain_weight=100.0), losses[0] + losses[1]

    return {"rmu of WMDP": pair}


def of_concept_vectors(root: Path) -> dict[str, Pair]:
    """Every loss of the trainer of ConceptVectors; what it calls DPO prefers the retain examples to the others."""
    names = {**scope(), "Dataset": object}
    for file in ("data_module.py", "dataloader.py"):
        definitions(root / file, names)
    own = {"beta": 0.1, "npo_coeff": 0.7, "grad_diff_coeff": 1.3, "KL_coeff": 1.3, "ref_policy": "fine_tuned"}

    def theirs(kind: str, draw: Draw) -> Tensor:
        made = object.__new__(names["CustomTrainerForgetting"])
        for key, value in {**own, "loss_type": kind, "oracle_model": draw.reference}.items():
            setattr(made, key, value)
        batches = [tuple(draw.inputs(k)[name] for name in ("input_ids", "labels", "attention_mask")) for k in (0, 1)]
        found: Tensor = made.compute_loss(draw.model, batches)
        return found

    def dpo(draw: Draw, **settings: Any) -> Tensor:
        method, _ = settle(METHODS.get("dpo"), {"parity": True, "beta": 0.1, **settings})
        batches = draw.batches()
        return objective_value(method.objective(), {**batches, "alternative": batches["retain"]})  # type: ignore[attr-defined]

    npo = {"beta": 0.1, "forget_weight": 0.7, "retain_weight": 1.3}
    mine: dict[str, Callable[[Draw], Tensor]] = {
        "grad_ascent": lambda d: ours("gradient_ascent", d),
        "grad_diff": lambda d: ours("grad_diff", d, retain_weight=1.5),
        "dpo": lambda d: dpo(d, retain="none"),
        "dpo_grad_diff": lambda d: dpo(d, retain="nll"),
        "dpo_KL": lambda d: dpo(d, retain="kl"),
        "npo": lambda d: ours("npo", d, beta=0.1, retain="none"),
        "npo_grad_diff": lambda d: ours("npo", d, retain="nll", **npo),
        "npo_KL": lambda d: ours("npo", d, retain="kl", **npo),
    }
    return {f"{kind} of ConceptVectors": lambda d, k=kind, f=f: (f(d), theirs(k, d)) for kind, f in mine.items()}  # type: ignore[misc]


def deviation(mine: Tensor, theirs: Tensor) -> float:
    """Return the largest |a - b| / (1 + |b|); infinite where one side alone is finite."""
    a, b = mine.detach().double(), theirs.detach().double()
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return math.inf
    apart = ((a - b).abs() / (1 + b.abs()))[finite]
    return float(apart.max()) if apart.numel() else 0.0


def compare(pair: Pair, draw: Draw) -> tuple[float, float]:
    """Return the deviations of loss and gradient on one draw."""
    values = pair(draw)
    found = [torch.autograd.grad(v, draw.leaves, allow_unused=True, materialize_grads=True) for v in values]
    return deviation(*values), max(deviation(a, b) for a, b in zip(*found, strict=True))


def commit(root: Path) -> str:
    """Return the commit of a checkout, or nothing."""
    asked = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the deviations as Markdown, the larger one of loss and gradient."""
    columns = list(dict.fromkeys((row["precision"], row["size"]) for row in rows))
    lines = ["| objective | " + " | ".join(f"{p}, {s:g}" for p, s in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    worst = {(r["objective"], r["precision"], r["size"]): max(r["loss"], r["gradient"]) for r in rows}
    for name in dict.fromkeys(row["objective"] for row in rows):
        lines.append(f"| {name} | " + " | ".join(f"{worst[name, *c]:.0e}" for c in columns) + " |")
    return "\n".join(lines)


def asked(about: str, sources: Iterable[str]) -> tuple[argparse.Namespace, dict[str, Path]]:
    """Read the command line: a checkout per source that is to be compared, how many draws, where results go."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in sources:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help="checkout of the authors' code")
    parser.add_argument("--draws", type=int, default=40, help="random inputs per cell of the table")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    roots = {name: getattr(given, name) for name in sources if getattr(given, name)}
    if not roots:
        parser.error("give at least one checkout")
    return given, roots


def report(given: argparse.Namespace, roots: Mapping[str, Path], rows: Sequence[Mapping[str, Any]], text: str) -> None:
    """Print the table, and write the files that were asked for."""
    print(text)
    if given.table:
        given.table.write_text(text + "\n", encoding="utf-8")
    if given.json:
        checkouts = " ".join(f"--{name.replace('_', '-')} DIR" for name in roots)
        about = {
            "command": f"python benchmarks/{Path(sys.argv[0]).name} {checkouts} --draws {given.draws}",
            "date": facts.now(), "commit": facts.commit(), "hardware": facts.hardware(), "versions": facts.versions(),
            "authors": {name: commit(root) for name, root in roots.items()},
        }  # fmt: skip
        given.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    sources = {
        "open_unlearning": of_open_unlearning, "flat": of_flat, "uld": of_uld, "wmdp": of_wmdp,
        "concept_vectors": of_concept_vectors,
    }  # fmt: skip
    given, roots = asked(__doc__, sources)
    rows = []
    for name, root in roots.items():
        for objective, pair in sources[name](root).items():
            for precision, dtype in DTYPES.items():
                for size in SIZES:
                    # An example without a label makes RMU not a number on both sides.
                    draws = [Draw(k, dtype, size) for k in range(given.draws)]
                    kept = [d for d in draws if not (d.unlabelled and objective == "rmu")]
                    found = [compare(pair, draw) for draw in kept]
                    loss, gradient = (max(side) for side in zip(*found, strict=True))
                    row = {"objective": objective, "precision": precision, "size": size, "draws": len(kept)}
                    rows.append({**row, "loss": loss, "gradient": gradient})
    report(given, roots, rows, table(rows))


if __name__ == "__main__":
    main()
