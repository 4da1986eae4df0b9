"""What we compute for classifiers and regressors against the authors' own code, number by number.

    python benchmarks/parity_predictors.py [--bad-teaching DIR] [--zero-shot DIR] [--deep-regression DIR] [--lira DIR]
        [--worst-case DIR] [--laf DIR] [--nearest-mean DIR] [--concept-vectors DIR]
        [--draws 40] [--json FILE] [--table FILE]

DIR are checkouts of vikram2000b/bad-teaching-unlearning, ayu987/zero-shot-unlearning,
ayu987/deep-regression-unlearning, tensorflow/privacy (its research/mi_lira_2021), OPTML-Group/Unlearn-WorstCase,
ShaofeiShen768/LAF, Pauljanson002/pretrained-cl and yihuaihong/ConceptVectors. Functions are read from there and run as
they are, on the processor; nothing of them is part of Expunge. Both sides get the same random inputs of several shapes.
ConceptVectors needs the package rouge (1.0.1) as well. Per case the table has the largest |a - b| / (1 + |b|) of the
values, and of their gradients by the inputs where there are any, in float64 and in float32.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as bleu
from scipy import stats
from sklearn.svm import SVC
from torch import Tensor, nn

from expunge.audits.classification.activation_distance import activation_distance
from expunge.audits.classification.svc_mia import svc_members
from expunge.audits.classification.zrf import released_js
from expunge.audits.concept_traces import compare_vectors
from expunge.audits.general.anamnesis_index import AnamnesisIndex, known, level_of
from expunge.audits.general.lira import class_logit, lira_scores
from expunge.audits.language.concept_vectors import distinct_rouge_l, sentence_bleu
from expunge.audits.observations import Observations
from expunge.audits.prediction_features import entropy
from expunge.forget_sets.bilevel import loss_weights, project, upper_step
from expunge.methods.classification.laf import Autoencoder, Density, alignment_loss, bounded, vae_loss
from expunge.methods.classification.nearest_mean import ClassMeans
from expunge.methods.classification.unsir import noise_loss
from expunge.methods.general.bad_teacher import teaching_loss
from expunge.methods.regression.blindspot import attention_distance, towards
from expunge.methods.regression.gaussian_finetune import absolute_error
from expunge.requests.request import DeletionRequest
from expunge.tasks.outcomes import Numbers
from expunge.tasks.predictor import Predictor
from expunge.tasks.statistics import RegressionStatistics
from expunge.tasks.table_inputs import TableInputs
from parity import asked, definitions, deviation, report

# What both sides say, and the inputs that gradients are taken by; none where a value has no gradient.
Said = tuple[Any, Any, Sequence[Tensor]]
Case = Callable[["Luck"], Said]
PASSES = 200  # over the data, until which a model has relearned
DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Luck:
    """Random inputs of one draw: everything follows from its number."""

    def __init__(self, number: int, dtype: torch.dtype):
        self.number, self.dtype = number, dtype
        self.generator = torch.Generator().manual_seed(number)
        self.rng = np.random.default_rng(number)
        self.examples, self.classes, self.size = 1 + number % 9, 2 + number % 11, (0.3, 2.0, 12.0)[number % 3]

    def normal(self, *shape: int, leaf: bool = False) -> Tensor:
        """Return normal numbers of the draw's size, rounded to its precision."""
        drawn = self.size * torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.dtype).requires_grad_(leaf)

    def labels(self, count: int, classes: int) -> Tensor:
        """Return random classes."""
        return torch.randint(classes, (count,), generator=self.generator)


@contextlib.contextmanager
def on_the_processor() -> Iterator[None]:
    """Let ``cuda()`` leave tensors and models where they are."""
    with (
        warnings.catch_warnings(action="ignore"),  # of what has changed in PyTorch since they wrote it
        mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor),
        mock.patch.object(nn.Module, "cuda", lambda module, *_, **__: module),
    ):
        yield


def scope(**more: Any) -> dict[str, Any]:
    """What the authors' files import."""
    return {"torch": torch, "nn": nn, "F": F, "np": np, "copy": copy, "print": lambda *_, **__: None, **more}


def statements(path: Path, scope: dict[str, Any], left_out: Sequence[str]) -> None:
    """Run a script of the authors in a scope, but for imports, classes and assignments to some names."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))

    def kept(node: ast.stmt) -> bool:
        named = {target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)}
        called = isinstance(node, ast.Expr) and ast.unparse(node).split(".")[0] in left_out
        return not (isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef) or named & set(left_out) or called)

    exec(compile(ast.Module([n for n in tree.body if kept(n)], []), str(path), "exec"), scope)


def probabilities(logits: Tensor) -> Any:
    """Return a softmax in float64 as an array."""
    return torch.softmax(logits.detach().double(), -1).numpy()


def one_by_one(count: int) -> list[tuple[Tensor, None, None]]:
    """Return batches of one example each: its number, and labels that nobody reads."""
    return [(torch.tensor([k]), None, None) for k in range(count)]


def of_bad_teaching(root: Path) -> dict[str, Case]:
    """Bad Teacher: its loss, ZRF, activation distance, entropy; UNSIR's loss of the noise."""
    names = scope()
    for file in ("metrics.py", "unlearn.py"):
        definitions(root / file, names)

    def teacher(luck: Luck) -> Said:
        student = luck.normal(luck.examples, luck.classes, leaf=True)
        good, bad = (luck.normal(luck.examples, luck.classes) for _ in range(2))
        forget = luck.labels(luck.examples, 2)
        temperature = (1.0, 2.0, 4.0)[luck.number % 3]
        mine = teaching_loss(student, torch.where(forget[:, None] > 0, bad, good), temperature) / luck.classes
        return mine.mean(), names["UnlearnerLoss"](student, forget, good, bad, temperature), [student]

    def zrf(luck: Luck) -> Said:
        p, q = (torch.softmax(luck.normal(luck.examples, luck.classes), -1) for _ in range(2))
        models = [lambda x, p=p: p[x].log() for p in (p, q)]
        theirs = names["UnLearningScore"](*models, one_by_one(luck.examples), 1, "cpu")
        return 1 - released_js(p.double().numpy(), q.double().numpy()), theirs, []

    def distance(luck: Luck) -> Said:
        p, q = (luck.normal(luck.examples, luck.classes) for _ in range(2))
        models = [lambda x, p=p: p[x] for p in (p, q)]
        theirs = names["actv_dist"](*models, one_by_one(luck.examples), "cpu")
        return activation_distance(probabilities(p), probabilities(q)).mean(), theirs, []

    def uncertainty(luck: Luck) -> Said:
        p = torch.softmax(luck.normal(luck.examples, luck.classes), -1)
        return entropy(p.double().numpy()), names["entropy"](p), []

    def noise(luck: Luck) -> Said:
        # One of their steps with Adam: its gradient is what is compared, by what reaches the noise.
        weights = luck.normal(12, luck.classes)
        start = luck.normal(luck.examples, 3, 2, 2)

        def model(inputs: Tensor) -> Tensor:
            return inputs.flatten(1) @ weights

        label, found = luck.number % luck.classes, names["UNSIR_noise"](luck.examples, 3, 2, 2)
        found.noise.data = start.clone()
        names["UNSIR_noise_train"](found, model, label, 1, luck.examples, "cpu")
        own = start.clone().requires_grad_(True)
        noise_loss(model(own), own, label, 0.1).backward()
        return own.grad, found.noise.grad, []

    return {
        "bad_teacher": teacher, "zrf (released_js)": zrf, "activation_distance": distance, "entropy": uncertainty,
        "unsir, gradient of the noise": noise,
    }  # fmt: skip


class Paired(nn.Module):
    """A model that returns what theirs do: its outputs and then activations, here none."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        """Return the outputs alone."""
        return (self.inner(inputs),)


def table(luck: Luck, column: str) -> list[dict[str, Any]]:
    """Return rows of three numbers with a class or a number that follows from them."""
    rows: list[dict[str, Any]] = []
    for x in luck.rng.normal(size=(30 + 10 * (luck.number % 3), 3)):
        score = float(x @ np.array([1.0, 2.0, -1.0]))
        said = score if column == "target" else "xyz"[int(score > 0) + int(x[0] > 1)]
        rows.append({"id": str(len(rows)), "a": float(x[0]), "b": float(x[1]), "c": float(x[2]), column: said})
    return rows


def relearned(names: dict[str, Any], luck: Luck, column: str) -> Said:
    """Steps until a small model knows its forget set again, and their ratio; batches come in the same order."""
    rows, batch, rate = table(luck, column), 8, 3e-2
    third = len(rows) // 3
    request = DeletionRequest(*(Dataset.from_list(part) for part in (rows[:third], rows[third:])))
    everything = Dataset.from_list(rows)
    outcome: Any = Numbers.fit(everything) if column == "target" else tuple("xyz")
    tasks = [Predictor.of_table(TableInputs.fit(everything), outcome, seed=k, hidden=(8,)) for k in range(3)]
    original, encoded = tasks[0], tasks[0].encode(everything)
    adam = torch.optim.Adam(original.model.parameters(), lr=rate)
    for _ in range(200):
        adam.zero_grad()
        original.statistics(encoded).nll.mean().backward()
        adam.step()
    # No accuracy of so few examples lies at the level itself, where theirs is decided by the rounding of float32.
    margin = 0.13 if column == "label" else 0.9
    steps_at_most = PASSES * len(encoded) // batch
    config = AnamnesisIndex.Config(
        learning_rate=rate, batch_size=batch, repeats=1, margin=margin, max_steps=steps_at_most
    )
    seen = Observations({"unlearned": tasks[1], "original": original, "oracle": tasks[2]}, request)
    asked = original.encode(request.forget)
    level = level_of(known(original.observe(asked)), margin)
    steps = []
    for task in tasks[1:]:
        victim = task.copy()
        studied = victim.encode(request.forget) + victim.encode(request.retain)
        order = np.random.default_rng([seen.seed, 0])
        loader = [
            (part.inputs, part.targets)
            for _ in range(PASSES)
            for chosen in torch.from_numpy(order.permutation(len(studied))).split(batch)
            for part in [studied.take(chosen.tolist())]
        ]
        # Theirs asks for an accuracy in percent, or for a loss, on the model's own scale.
        wanted = 100 * level if column == "label" else -level / float(np.mean(outcome.scale))
        names["valid_dl"] = [(asked.inputs, asked.targets)]
        steps.append(names["relearn_time"](Paired(victim.model), loader, names["valid_dl"], wanted, rate))
    found = AnamnesisIndex(config).run(seen).estimates
    mine = [found["unlearned"]["relearn_time"], found["oracle"]["relearn_time"], found["unlearned"]["ain"]]
    values = [math.nan if estimate.value is None else estimate.value for estimate in mine]
    return values, [*steps, steps[0] / steps[1]], []


def of_zero_shot(root: Path) -> dict[str, Case]:
    """The anamnesis index where it was proposed: steps until the accuracy is back."""
    names = scope()
    for file in ("utils.py", "metrics.py"):
        definitions(root / file, names)
    # Their notebook calls both without saying where the model is.
    for name in ("evaluate", "training_step"):
        names[name] = partial(names[name], device="cpu")
    return {"anamnesis_index, classifiers": lambda luck: relearned(names, luck, "label")}


def of_deep_regression(root: Path) -> dict[str, Case]:
    """Blindspot, and the anamnesis index of regressors."""
    names = scope(tqdm=None, SVC=SVC, random=random)
    for file in ("utils.py", "metrics.py", "unlearn.py"):
        definitions(root / file, names)
    names["get_attack_features"] = partial(names["get_attack_features"], device="cpu")
    relearn = {**names, "training_step": lambda model, batch, device: F.mse_loss(model(batch[0])[0], batch[1])}
    definitions(root / "metrics.py", relearn)
    relearn["relearn_time"] = partial(relearn["relearn_time"], device="cpu")

    class Outputs(nn.Module):
        """A model whose outputs and activations are its weights."""

        def __init__(self, given: Tensor, activations: Sequence[Tensor] = ()):
            super().__init__()
            self.given = nn.Parameter(given.clone())
            self.activations = nn.ParameterList(nn.Parameter(a.clone()) for a in activations)

        def forward(self, _: Tensor) -> tuple[Tensor, ...]:
            return (self.given, *self.activations)

    def blindspot(luck: Luck) -> Said:
        """Whole batches of theirs, as many examples to forget as to keep, as every step has here."""
        count = luck.examples
        shapes = ((2 * count, 3, 4, 5), (2 * count, 6, 2))
        model, proxy = (Outputs(luck.normal(2 * count, 1), [luck.normal(*s) for s in shapes]) for _ in range(2))
        targets, forget = luck.normal(2 * count, 1), torch.arange(2 * count) >= count
        said: list[Tensor] = []
        for weight in model.parameters():
            weight.register_post_accumulate_grad_hook(lambda p: said.append(p.grad.clone()))
        silent = {**names, "evaluate": lambda *_: {}, "epoch_end": lambda *_: None}
        definitions(root / "unlearn.py", silent)
        with mock.patch.object(torch.optim.lr_scheduler, "ReduceLROnPlateau"), mock.patch.object(torch, "save"):
            history = silent["fit_one_forget_cycle"](
                1, model, proxy, [(targets, targets, forget.long())], None, 0.0, "cpu", None
            )
        own, *maps = (p.detach().clone().requires_grad_(True) for p in model.parameters())
        each = [
            RegressionStatistics(part, targets[:count], torch.arange(count), torch.ones(count, dtype=torch.int64), [])
            for part in (own[:count], own[count:])
        ]
        kept, gone = absolute_error(each[0]).mean(), towards(each[1], proxy.given[count:], True).mean()
        others = {k: a[count:] for k, a in enumerate(proxy.activations)}
        apart = attention_distance({k: a[count:] for k, a in enumerate(maps)}, others, second=True).mean()
        loss = 0.5 * (gone + 50.0 * apart) + 0.5 * kept
        gradients = torch.autograd.grad(loss, [own, *maps])
        theirs = {g.shape: g for g in said}
        flat = [
            torch.cat([given.flatten() for given in side]) for side in (gradients, [theirs[g.shape] for g in gradients])
        ]
        return [loss.detach(), *flat[0]], [history[0]["train_loss"], *flat[1]], []

    def errors(luck: Luck) -> Said:
        """Their attack reads one example at a time; members are what it is trained on here too."""
        sides = [(luck.normal(n, 1).double(), luck.normal(n, 1).double()) for n in (30, 25, 20)]
        loaders = [SimpleNamespace(dataset=list(zip(*side, strict=True))) for side in sides]

        class Answers(nn.Module):
            def forward(self, outputs: Tensor) -> tuple[Tensor]:
                return (outputs,)

        theirs = names["get_membership_attack_prob"](loaders[0], loaders[1], Answers(), {"asked": loaders[2]})
        parts = [(outputs - targets).abs().numpy() for outputs, targets in sides]
        return svc_members(*parts).mean(), theirs["asked"], []

    return {
        "blindspot": blindspot,
        "error_mia": errors,
        "anamnesis_index, regressors": lambda luck: relearned(relearn, luck, "target"),
    }


def of_lira(root: Path) -> dict[str, Case]:
    """LiRA: what it takes of a classifier's logits, and the four scores of its figure."""
    names = scope(scipy=SimpleNamespace(stats=stats))
    definitions(root / "research" / "mi_lira_2021" / "plot.py", names)
    reading = scope(os=os, mp=None)
    definitions(root / "research" / "mi_lira_2021" / "score.py", reading)

    def logit(luck: Luck) -> Said:
        count = luck.examples
        logits = luck.normal(count, luck.classes)
        labels = luck.labels(count, luck.classes).numpy()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "experiment" / "logits"
            place.mkdir(parents=True)
            np.save(place / "0.npy", logits.numpy()[:, None, None])
            reading.update(logdir=folder, labels=labels)
            reading["load_one"]("experiment")
            theirs = np.load(Path(folder) / "experiment" / "scores" / "0.npy")[:, 0]
        return class_logit(np.log(probabilities(logits)), labels), theirs, []

    def scores(luck: Luck, mode: Any, pooled: bool) -> Said:
        count, shadows = 2 + luck.examples, 6 + 2 * (luck.number % 5)
        known_values, observed = (luck.normal(n, count).double().numpy() for n in (shadows, 1))
        # Not as many of them with every example: theirs reads as many as the one with the fewest has.
        inside = np.stack([luck.rng.permutation(shadows) < shadows // 2 + k % 2 for k in range(count)], 1)
        function = names["generate_ours" if mode == "online" else "generate_ours_offline"]
        asked = np.zeros((1, count), dtype=bool)
        theirs, _ = function(inside, known_values[:, :, None], asked, observed[:, :, None], fix_variance=pooled)
        # Theirs is low for members: their curve is drawn of minus it.
        return lira_scores(observed[0], known_values, inside, mode, pooled, parity=True), -np.array(theirs), []

    found: dict[str, Case] = {"lira, logit": logit}
    for mode in ("online", "offline"):
        for pooled in (False, True):
            name = f"lira, {mode}{', one deviation' if pooled else ''}"
            found[name] = lambda luck, m=mode, p=pooled: scores(luck, m, p)  # type: ignore[misc]
    return found


def of_worst_case(root: Path) -> dict[str, Case]:
    """Worst-case forget sets: the projection, both upper steps, and the step of the lower problem."""
    tools = scope(optim=torch.optim)
    definitions(root / "data-wise" / "utils.py", tools)
    as_it_is = dict.fromkeys(("w_iterative_unlearn", "iterative_unlearn"), lambda function: function)
    own = scope(utils=SimpleNamespace(**tools), time=time, **as_it_is)
    for file in ("impl.py", "FT.py"):
        definitions(root / "data-wise" / "unlearn" / file, own)

    def start(luck: Luck) -> tuple[Tensor, int]:
        units = 8 + 5 * luck.examples
        return torch.rand(units, generator=luck.generator, dtype=torch.float64), units // 3

    def projection(luck: Luck) -> Said:
        weights, total = start(luck)
        values = weights + luck.normal(len(weights)).double()
        return project(values, total), tools["bisection"](values, total), []

    def upper(luck: Luck, easiest: bool) -> Said:
        weights, total = start(luck)
        weights = project(weights, total)
        # They keep losses in float32.
        logits, labels = luck.normal(len(weights), luck.classes).float(), luck.labels(len(weights), luck.classes)
        asked = SimpleNamespace(w_lr=0.05, gamma=0.01, num_indexes_to_replace=total)
        loader = [(logits[part], labels[part], part) for part in torch.arange(len(weights)).split(4)]
        step = own["reverse_optimize_select" if easiest else "optimize_select"]
        criterion = nn.CrossEntropyLoss(reduction="none")
        theirs, _ = step(loader, lambda x: x, criterion, asked, weights.clone())
        losses = criterion(logits, labels).double()
        mine = upper_step(weights, losses, rate=0.05, ridge=0.01, total=total, easiest=easiest, parity=True)
        return mine, theirs, []

    def lower(luck: Luck) -> Said:
        weights, _ = start(luck)
        model = nn.Linear(3, luck.classes, dtype=luck.dtype)
        inputs, labels = luck.normal(len(weights), 3), luck.labels(len(weights), luck.classes)
        taken = copy.deepcopy(model)
        optimizer = tools["SignSGD"](taken.parameters(), 0.01, 0.9, 5e-4)
        asked = SimpleNamespace(warmup=0, select_epochs=1, no_l1_epochs=0, alpha=0.0, unlearn_steps=1, print_freq=1)
        said: list[Tensor] = []
        for p in taken.parameters():
            p.register_post_accumulate_grad_hook(lambda p: said.append(p.grad.clone()))
        everything = torch.arange(len(weights))
        criterion = nn.CrossEntropyLoss(reduction="none")
        own["w_FT_iter"]([(inputs, labels, everything)], taken, criterion, optimizer, 0, asked, weights)
        loss = (loss_weights(weights, everything).to(luck.dtype) * criterion(model(inputs), labels)).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        moved = [p - 0.01 * g.sign() for p, g in zip(model.parameters(), gradients, strict=True)]
        by_name = sorted(said, key=lambda g: -g.dim())
        return flat([*gradients, *moved]), flat([*by_name, *taken.parameters()]), []

    return {
        "worst_case, projection": projection,
        "worst_case, upper step": lambda luck: upper(luck, False),
        "easiest, upper step": lambda luck: upper(luck, True),
        "worst_case, lower step": lower,
    }


def flat(parts: Sequence[Tensor]) -> Tensor:
    """Return the numbers of some tensors as one vector."""
    return torch.cat([part.detach().flatten() for part in parts])


def of_laf(root: Path) -> dict[str, Case]:
    """LAF: its autoencoder with the weights of ours, and its three losses."""
    names = scope()
    for file in ("Model.py", "Train.py", "VUnlearning.py"):
        definitions(root / file, names)

    def twins(luck: Luck) -> tuple[Autoencoder, Any]:
        latent = (8, 16)[luck.number % 2]
        torch.manual_seed(luck.number)
        mine = Autoencoder(256, latent, sigmoid=True).to(luck.dtype)
        theirs = names["VariationalAutoencoder"]("Digit", latent).to(luck.dtype)
        first: Any = mine.encoder
        last: Any = mine.decoder
        for own, other in (
            (first[0], theirs.encoder.linear1), (first[2], theirs.encoder.linear2), (last[0], theirs.decoder.linear1),
            (last[2], theirs.decoder.linear2), (last[4], theirs.decoder.linear3),
        ):  # fmt: skip
            other.load_state_dict(own.state_dict())
        for half, other in zip(range(2), (theirs.encoder.linear3_1, theirs.encoder.linear3_2), strict=True):
            other.weight.data = first[4].weight.data.chunk(2)[half].clone()
            other.bias.data = first[4].bias.data.chunk(2)[half].clone()
        return mine, theirs

    def autoencoder(luck: Luck) -> Said:
        mine, theirs = twins(luck)
        embeddings = luck.normal(luck.examples, 256, leaf=True)
        noise = luck.normal(luck.examples, mine.latent)
        with mock.patch.object(torch, "randn_like", return_value=noise):
            made, _, *code = theirs(embeddings)
        rebuilt, mean, spread = mine(embeddings, noise)
        loss = vae_loss(embeddings, rebuilt, mean, spread, 0.025)
        return loss, names["vae_loss_function"](made, embeddings, *code), [embeddings]

    def leave(luck: Luck) -> Said:
        mine, theirs = twins(luck)
        embeddings = luck.normal(luck.examples, 256, leaf=True)
        noise = luck.normal(luck.examples, mine.latent)
        with mock.patch.object(torch, "randn_like", return_value=noise):
            made = theirs(embeddings)[0]
        zero, one = torch.zeros(256, dtype=luck.dtype), torch.ones((), dtype=luck.dtype)
        distance = Density(mine, zero, one, summed=True).distance(embeddings, noise)
        return bounded(distance).sum(), names["extractor_loss_functionnmse"](made, embeddings), [embeddings]

    def align(luck: Luck) -> Said:
        retain, forget = (luck.normal(n, 256, leaf=True) for n in (luck.examples, 1 + luck.number % 4))
        before = [part.detach() + luck.normal(*part.shape) for part in (retain, forget)]
        temperature = (5.0, 20.0)[luck.number % 2]
        mine = alignment_loss(retain, before[0], forget, before[1], temperature).sum()
        theirs = names["extractor_loss_functioncosine"](retain, before[0], forget, before[1], temperature)
        return mine, theirs, [retain, forget]

    return {"laf, autoencoder": autoencoder, "laf, leave": leave, "laf, align": align}


def of_nearest_mean(root: Path) -> dict[str, Case]:
    """Nearest class means: sums over eight parts of the data, and the class that each test example is given."""

    def means(luck: Luck) -> Said:
        features = luck.normal(50 * 9, 6)
        labels = torch.cat([torch.arange(50), luck.labels(50 * 8, 50)])
        asked, truth = luck.normal(40, 6), luck.labels(40, 50)
        parts = list(zip(features.split(57), labels.split(57), strict=True))

        def data(train: bool = True, task_id: int = 0, transform: Any = None) -> tuple[Tensor, Tensor]:
            return parts[task_id] if train else (asked, truth)

        encoder = SimpleNamespace(forward_features=lambda x: x[:, None])
        names = scope(
            args=SimpleNamespace(tsne=False), vit_b_16=encoder, Core50Dataset=data, tqdm=lambda x, **_: x,
            DataLoader=lambda given, batch_size: [given],
        )  # fmt: skip
        for name in ("Compose", "Resize", "CenterCrop", "ToTensor"):
            names[name] = lambda *_: None
        with np.errstate(invalid="ignore"):  # a class without an example so far
            statements(root / "main_core50.py", names, ("parser", "args", "vit_b_16", "print"))
        own = ClassMeans(50, 6)
        own.add(F.normalize(features), labels)
        weight, bias = own.head("euclidean")
        # Theirs normalises what it asks about, and not the means.
        given = (F.normalize(asked).double() @ weight.T + bias).argmax(1)
        theirs = [*np.asarray(names["class_mean_set"]).flatten(), float(names["accuracy_history"][-1])]
        return [*own.means.flatten(), float((given == truth).float().mean())], theirs, []

    return {"nearest_mean": means}


def of_concept_vectors(root: Path) -> dict[str, Case]:
    """What ConceptVectors says of a vector before and after, and BLEU and ROUGE-L of two answers."""
    from rouge import Rouge  # theirs, and not what Expunge scores with

    names = scope(sentence_bleu=bleu, SmoothingFunction=SmoothingFunction, Rouge=Rouge, stopwords0_=[])
    definitions(root / "evaluate_util.py", names)

    def vectors(luck: Luck) -> Said:
        width, vocabulary = 16, 500
        head, before = luck.normal(vocabulary, width), luck.normal(width)
        after = before + (0.1, 0.5, 2.0)[luck.number % 3] * luck.normal(width)
        words = [str(k) for k in range(vocabulary)]
        tokenizer = SimpleNamespace(_convert_id_to_token=words.__getitem__, tokenize=str.split)
        model = SimpleNamespace(get_output_embeddings=lambda: SimpleNamespace(weight=head))
        jaccard, *_ = names["jaccard_similarity"](
            model, tokenizer, before, after, preciser_jaccard=True, wikipedia_content=" ".join(words)
        )
        theirs = [jaccard, names["cosine_similarity"](before, after), names["norm_distance"](before, after)]
        found = compare_vectors(before[None].float(), after[None].float(), head.float(), head.float(), 200)
        length = float(before.float().norm())
        return [found["jaccard"][0], found["cosine"][0], found["l2"][0] * length], theirs, []

    def answers(luck: Luck) -> Said:
        texts = [" ".join(map(str, luck.rng.integers(0, 6, size=luck.rng.integers(1, 25)))) for _ in range(2)]
        return sentence_bleu(*texts, parity=True), names["calculate_bleu"](*texts), []

    def overlap(luck: Luck) -> Said:
        words = np.array(["a", "b", "c", "d", "e.", "f. "])
        texts = [" ".join(luck.rng.choice(words, size=luck.rng.integers(0, 25))) for _ in range(2)]
        return distinct_rouge_l(*texts), names["calculate_rouge_l"](*texts), []

    return {"concept_vectors": vectors, "concept_vectors, BLEU": answers, "concept_vectors, ROUGE-L": overlap}


SOURCES: dict[str, Callable[[Path], dict[str, Case]]] = {
    "bad_teaching": of_bad_teaching, "zero_shot": of_zero_shot, "deep_regression": of_deep_regression, "lira": of_lira,
    "worst_case": of_worst_case, "laf": of_laf, "nearest_mean": of_nearest_mean, "concept_vectors": of_concept_vectors,
}  # fmt: skip


def compare(case: Case, luck: Luck) -> tuple[float, float]:
    """Return the deviations of values and gradients on one draw."""
    mine, theirs, leaves = case(luck)
    values = [torch.as_tensor(said, dtype=torch.float64).detach() for said in (mine, theirs)]
    if values[0].shape != values[1].shape:
        raise ValueError(f"shapes {tuple(values[0].shape)} and {tuple(values[1].shape)} differ")
    if not leaves:
        return deviation(*values), 0.0
    found = [torch.autograd.grad(said, leaves) for said in (mine, theirs)]
    return deviation(*values), max(deviation(a, b) for a, b in zip(*found, strict=True))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the deviations as Markdown."""
    columns = [f"{side}, {precision}" for side in ("values", "gradients") for precision in DTYPES]
    lines = ["| what | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in dict.fromkeys(row["what"] for row in rows):
        own = {row["precision"]: row for row in rows if row["what"] == name}
        cells = [own[precision][side] for side in ("values", "gradients") for precision in DTYPES]
        lines.append(f"| {name} | " + " | ".join("" if cell is None else f"{cell:.0e}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    given, roots = asked(__doc__, SOURCES)
    rows = []
    with on_the_processor():
        for name, root in roots.items():
            for what, case in SOURCES[name](root).items():
                for precision, dtype in DTYPES.items():
                    found = [compare(case, Luck(k, dtype)) for k in range(given.draws)]
                    values, gradients = (max(side) for side in zip(*found, strict=True))
                    graded = bool(case(Luck(0, dtype))[2])
                    row = {"what": what, "precision": precision, "draws": len(found), "values": values}
                    rows.append({**row, "gradients": gradients if graded else None})
    report(given, roots, rows, markdown(rows))


if __name__ == "__main__":
    main()
