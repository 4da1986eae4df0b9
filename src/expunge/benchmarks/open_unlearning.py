"""Reads a run of open-unlearning, or checkpoints and data of TOFU or MUSE: their metrics recomputed, ours beside them.

``compare_run`` is what ``expunge import open-unlearning`` calls. Each model is loaded once and laid out twice: as they
do, for their numbers to rounding, and without the slips, for our audits. Conclusions are drawn from both by one rule.

Source: locuslab/open-unlearning (MIT) at d3d7cf9; Maini et al. 2024, TOFU (arXiv:2401.06121); Shi et al. 2024, MUSE
(arXiv:2407.06460).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.audits.base import Estimate, Finding
from expunge.audits.suite import run_audits
from expunge.benchmarks import muse_data
from expunge.benchmarks.open_unlearning_conclusions import MuseSides, Sides, conclusions, muse_conclusions, our_leak
from expunge.benchmarks.open_unlearning_effects import strength_effects
from expunge.benchmarks.open_unlearning_folder import Logs, PeerRun, read_run, read_template
from expunge.benchmarks.open_unlearning_logs import LogRow, check_logs
from expunge.benchmarks.open_unlearning_metrics import ATTACKS, KNOWN, Metric, Seen, tofu_metrics
from expunge.benchmarks.open_unlearning_muse import (
    MUSE_KNOWN,
    estimate,
    observe_ours,
    observe_theirs,
    our_metrics,
    their_metrics,
)
from expunge.benchmarks.open_unlearning_names import audits_of, our_number
from expunge.benchmarks.open_unlearning_observe import effects_of, groups_of, laid_out, observe, sets_of
from expunge.benchmarks.open_unlearning_result import Comparison, MetricRow
from expunge.benchmarks.open_unlearning_text import Template, default_template
from expunge.benchmarks.tofu_data import SPLITS, TofuSplit, find, load_split
from expunge.data.files import read_examples
from expunge.errors import BadInput, Problem
from expunge.registry import near_names
from expunge.requests.request import DeletionRequest
from expunge.runs.facts import commit, hardware, now, versions
from expunge.runs.models import model_path, stated_level
from expunge.runs.progress import Progress
from expunge.tasks.causal_lm import CausalLM
from expunge.verdict import Verdict, decide

TITLES = {"unlearned": "model", "oracle": "retained model"}
NEEDS_HOLDOUT = (*ATTACKS, "privleak", "mia_reference", "mia_gradnorm")
# One backward pass per example and model: only where asked for, or logged.
SLOW = ("mia_gradnorm",)
# Metrics that compare with the retained model and so say nothing about itself.
RELATIVE = ("forget_quality", "privleak", "mia_reference")


@dataclass(frozen=True)
class Asked:
    """What to read and compare.

    Attributes:
        run: a run folder of theirs, or a checkpoint.
        retained_run: the same of the model trained without the forget set.
        model, reference: weights of the two, where the folders have none; a folder or a hub name.
        original: the model before unlearning; only our verdict reads it.
        split: "forget01", "forget05" or "forget10" of TOFU, "News" or "Books" of MUSE; the run's own by default.
        data: folder of the files; ``$EXPUNGE_DATA/tofu``, ``$EXPUNGE_DATA/muse/<corpus>`` or the hub by default.
        holdout: file of examples that the model never saw, for membership on TOFU; MUSE has its own.
        model_config: their ``configs/model/NAME.yaml``, for how questions are put; the run's own by default.
        metrics: which to recompute; all that the data allows by default.
        dtype, device: for loading weights.
    """

    run: Path | None = None
    retained_run: Path | None = None
    model: str | None = None
    reference: str | None = None
    original: str | None = None
    split: str | None = None
    data: str | None = None
    holdout: str | None = None
    model_config: Path | None = None
    metrics: tuple[str, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class _Given:
    """What was found of one model: what its folder says, its weights, its results."""

    run: PeerRun | None
    weights: str | None
    logs: Logs | None


def compare_run(asked: Asked, progress: Progress | None = None) -> Comparison:
    """Recompute their metrics, put ours beside them, and list the conclusions that change.

    Without weights, only what the results say of themselves is checked.

    Raises:
        BadInput: folders that are missing or damaged, an unknown split or metric, results that are not of the split, a
            metric that needs a retained model or unseen examples that were not given, or models that cannot be loaded.
    """
    progress = progress or Progress()
    model, retained, template, suite = _read(asked)
    facts: dict[str, Any] = {
        "date": now(), "commit": commit(), "versions": versions(), "hardware": hardware(),
        "run": _name(asked.run), "retained_run": _name(asked.retained_run), "model": _name(model.weights),
        "retained_model": _name(retained.weights), "original": _name(asked.original),
    }  # fmt: skip
    checks = check_logs(model.logs, retained.logs) if model.logs else []
    if reason := _not_recomputed(model):
        return Comparison(facts | {"not_recomputed": reason}, checks)
    if suite == "MUSE":
        return _compare_muse(asked, model, retained, template, facts, checks, progress)
    split, holdout = _data(asked, model, retained)
    tasks = _tasks(asked, model, retained, progress)
    template = template or default_template(tasks["unlearned"])
    ours = {name: laid_out(task, template) for name, task in tasks.items()}
    if asked.original is not None:
        ours["original"] = laid_out(_load(asked.original, asked), template)
    wanted, sets = _wanted(asked, KNOWN, model, retained), sets_of(split, holdout)
    seen: dict[str, Seen] = {}
    for name, task in tasks.items():
        progress.stage(f"recomputing their metrics of the {TITLES[name]}")
        seen[name] = observe(task, template, sets, wanted, progress)
    theirs_retained = tofu_metrics(seen["oracle"]) if "oracle" in seen else None
    others = _others(theirs_retained, retained)
    theirs = tofu_metrics(seen["unlearned"], others, seen.get("oracle"))
    progress.stage("asking our audits")
    findings, verdict = _audited(ours, replace(split.audit, holdout=holdout), split, wanted, model, progress)
    sides = Sides(
        theirs, theirs_retained, seen["unlearned"], seen.get("oracle"), findings, verdict,
        {role: list(rows["id"]) for role, rows in sets.items()}, groups_of(sets),
        ((others or {}).get("mia_min_k") or {}).get("agg_value"),
    )  # fmt: skip

    def rows(metrics: Mapping[str, Metric], given: _Given, who: str) -> list[MetricRow]:
        return _rows(asked, wanted, metrics, given, lambda name: our_number(findings, name, who))

    alone = {n: metric for n, metric in (theirs_retained or {}).items() if n not in RELATIVE}
    facts |= {
        "split": split.name, "template": vars(template), "dtype": asked.dtype,
        "examples": {role: len(rows) for role, rows in sets.items()}, "metrics": list(asked.metrics),
    }  # fmt: skip
    return Comparison(
        facts,
        checks,
        rows(theirs, model, "unlearned"),
        rows(alone, retained, "oracle") if alone else [],
        effects_of(tasks["unlearned"], template, sets, seen["unlearned"], "extraction_strength" in wanted),
        [one for one in conclusions(sides) if one.metric in wanted],
        verdict.to_dict(),
    )


def _compare_muse(
    asked: Asked,
    model: _Given,
    retained: _Given,
    template: Template | None,
    facts: Mapping[str, Any],
    checks: Sequence[LogRow],
    progress: Progress,
) -> Comparison:
    name, corpus = _corpus(asked, model, retained)
    tasks = _tasks(asked, model, retained, progress)
    template = template or default_template(tasks["unlearned"])
    wanted, seen, mine = _wanted(asked, MUSE_KNOWN, model, retained), {}, {}
    for who, task in tasks.items():
        progress.stage(f"recomputing their metrics of the {TITLES[who]}")
        seen[who] = observe_theirs(task, template, corpus, wanted, progress)
        progress.stage(f"measuring ours of the {TITLES[who]}")
        mine[who] = observe_ours(task, corpus, wanted, progress)
    oracle = "oracle" in tasks
    theirs_retained = their_metrics(seen["oracle"]) if oracle else None
    theirs = their_metrics(seen["unlearned"], _others(theirs_retained, retained), seen.get("oracle"))
    ours, ours_retained = our_metrics(mine["unlearned"], mine.get("oracle")), None
    if oracle:
        ours_retained = our_metrics(mine["oracle"])
    sides = MuseSides(theirs, theirs_retained, ours, ours_retained)

    def number(name: str, side: Mapping[str, Metric]) -> Estimate:
        if name in RELATIVE and side is not ours:
            return Estimate(None, note="this model is the reference")
        if name == "privleak":
            return our_leak(ours, ours_retained)
        return estimate(name, side[name]) if name in side else Estimate(None, note="not measured here")

    alone = {n: metric for n, metric in (theirs_retained or {}).items() if n not in RELATIVE}
    facts = {
        **facts, "split": name, "template": vars(template), "dtype": asked.dtype, "metrics": list(asked.metrics),
        "examples": {"forget_qa": len(corpus.forget_qa), "retain_qa": len(corpus.retain_qa),
                     "verbmem": len(corpus.verbmem), "private": [len(side) for side in corpus.private]},
    }  # fmt: skip
    kept = ours_retained or {}
    return Comparison(
        facts,
        checks,
        _rows(asked, wanted, theirs, model, lambda n: number(n, ours)),
        _rows(asked, wanted, alone, retained, lambda n: number(n, kept)) if alone else [],
        strength_effects(seen["unlearned"].answers["verbmem"]) if "extraction_strength" in wanted else [],
        [one for one in muse_conclusions(sides, estimate) if one.metric in wanted],
    )


def _tasks(asked: Asked, model: _Given, retained: _Given, progress: Progress) -> dict[str, CausalLM]:
    progress.stage("loading models")
    paths = {"unlearned": model.weights, "oracle": retained.weights}
    return {who: _load(path, asked) for who, path in paths.items() if path is not None}


def _others(recomputed: Mapping[str, Metric] | None, retained: _Given) -> Mapping[str, Mapping[str, Any]] | None:
    """The retained model's metrics, from its weights where there are any, else from its results."""
    if recomputed is not None:
        return recomputed
    return retained.logs.metrics if retained.logs else None


def _rows(
    asked: Asked,
    wanted: Sequence[str],
    metrics: Mapping[str, Metric],
    given: _Given,
    ours: Callable[[str], Estimate],
) -> list[MetricRow]:
    logged = given.logs.metrics if given.logs else {}
    names = [name for name in wanted if name in metrics]
    names += [name for name in logged if name not in names and not asked.metrics]
    return [MetricRow.of(name, logged.get(name), metrics.get(name), ours(name)) for name in names]


def _audited(
    tasks: Mapping[str, CausalLM],
    request: DeletionRequest,
    split: TofuSplit,
    wanted: Sequence[str],
    model: _Given,
    progress: Progress,
) -> tuple[dict[str, Finding], Verdict]:
    def tell(what: str, done: int, total: int) -> None:
        progress.step(done, total, what)

    result = run_audits(tasks, request, audits_of(wanted), extra=split.knowledge, progress=tell)
    evidence = [one for finding in result.findings for one in finding.evidence]
    crashed = [finding.audit for finding in result.crashed]
    verdict = decide(evidence, removal_level=stated_level(str(model.weights)), crashed=crashed)
    return {finding.audit: finding for finding in result.findings}, verdict


def _read(asked: Asked) -> tuple[_Given, _Given, Template | None, str]:
    """Read both folders and the template, and say which suite it is; everything that is wrong is in one error."""
    problems: list[Problem] = []

    def attempt(read: Any, *given: Any) -> Any:
        try:
            return read(*given)
        except BadInput as error:
            problems.extend(error.problems)
            return None

    run = attempt(read_run, model_path(asked.run)) if asked.run else None
    other = attempt(read_run, model_path(asked.retained_run)) if asked.retained_run else None
    template = attempt(read_template, asked.model_config) if asked.model_config else None
    if asked.run is None and asked.model is None:
        problems.append(Problem("RUN_OR_CHECKPOINTS", "names nothing", "give a run folder, or a checkpoint"))
    suites = [found.suite for found in (run, other) if found and found.suite]
    suite = suites[0] if suites else "MUSE" if (asked.split or "").lower() in muse_data.CORPORA else "TOFU"
    if len(set(suites)) > 1:
        what = f"is of {suites[1]}, and the first is of {suites[0]}"
        problems.append(Problem(str(asked.retained_run), what, "give the retained model's run of the same suite"))
    known = MUSE_KNOWN if suite == "MUSE" else KNOWN
    for name in asked.metrics:
        if name not in known:
            what = f"'{name}' is not recomputed here for {suite}"
            problems.append(Problem("--metric", what, near_names(name, list(known))))
    if problems:
        raise BadInput(problems)
    # A run names the results of its retained model, and a folder of the retained model says more.
    logs = other.logs if other and other.logs else run.retained_logs if run else None
    model = _Given(run, asked.model or _path(run), run.logs if run else None)
    retained = _Given(other, asked.reference or _path(other), logs)
    template = template or next((r.template for r in (run, other) if r and r.template), None)
    if model.weights is None and model.logs is None:
        named = f"; its config names {run.named_checkpoint}" if run and run.named_checkpoint else ""
        raise BadInput(
            Problem(str(asked.run), f"holds neither results nor weights{named}", "give --model FOLDER_OR_HUB_NAME")
        )
    return model, retained, template, suite


def _path(run: PeerRun | None) -> str | None:
    return str(run.checkpoint) if run and run.checkpoint else None


def _name(path: Any) -> str | None:
    """How a page names a path or a hub name: without the machine's folders."""
    if path is None:
        return None
    text = str(path)
    return Path(text).resolve().name if Path(text).is_absolute() else text


def _not_recomputed(model: _Given) -> str:
    if model.weights is None:
        named = model.run.named_checkpoint if model.run else None
        return f"no weights were found{f' (the config names {named})' if named else ''}; give --model to recompute"
    return ""


def _data(asked: Asked, model: _Given, retained: _Given) -> tuple[TofuSplit, Dataset | None]:
    """Read the split and what was never seen; refuse results of other data and metrics that lack something."""
    problems: list[Problem] = []
    name = asked.split or next((g.run.split for g in (model, retained) if g.run and g.run.split), None)
    if name is None:
        problems.append(Problem("--split", "is missing", f"give one of {', '.join(SPLITS)}"))
    for metric in asked.metrics:
        if metric in NEEDS_HOLDOUT and asked.holdout is None:
            fix = "give --holdout FILE; TOFU's own is not in its public files"
            problems.append(Problem("--metric", f"{metric} compares with examples that the model never saw", fix))
        if metric == "forget_quality" and retained.weights is None and retained.logs is None:
            fix = "give its run folder or checkpoint as the second argument"
            problems.append(
                Problem("--metric", "forget_quality compares with the model trained without the split", fix)
            )
    problems += _no_reference(asked, retained)
    if problems or name is None:
        raise BadInput(problems)
    split = load_split(find(asked.data), name)
    per_metric = dict.fromkeys(("forget_Q_A_Prob", "forget_truth_ratio", "extraction_strength"), split.audit.forget)
    if problems := _other_rows(model, retained, {metric: len(rows) for metric, rows in per_metric.items()}):
        raise BadInput(problems)
    return split, read_examples(asked.holdout, role="holdout", duplicates="drop") if asked.holdout else None


def _corpus(asked: Asked, model: _Given, retained: _Given) -> tuple[str, muse_data.Corpus]:
    """Read MUSE's files; refuse what does not go with them."""
    problems = _no_reference(asked, retained)
    name = asked.split or next((g.run.split for g in (model, retained) if g.run and g.run.split), None)
    if name is None or name.lower() not in muse_data.CORPORA:
        what = "is missing" if name is None else f"'{name}' is no corpus of MUSE"
        problems.append(Problem("--split", what, "give News or Books"))
    if asked.holdout is not None:
        problems.append(Problem("--holdout", "is for TOFU; MUSE has texts that were never seen", "leave it out"))
    if asked.original is not None:
        problems.append(Problem("--original", "is for the verdict on TOFU", "leave it out"))
    if problems or name is None:
        raise BadInput(problems)
    corpus = muse_data.load_corpus(muse_data.find(asked.data, name.lower()))
    rows = {"forget_knowmem_ROUGE": corpus.forget_qa, "retain_knowmem_ROUGE": corpus.retain_qa,
            "forget_verbmem_ROUGE": corpus.verbmem, "extraction_strength": corpus.verbmem}  # fmt: skip
    if problems := _other_rows(model, retained, {metric: len(asked_for) for metric, asked_for in rows.items()}):
        raise BadInput(problems)
    return name, corpus


def _no_reference(asked: Asked, retained: _Given) -> list[Problem]:
    if "mia_reference" not in asked.metrics or retained.weights is not None:
        return []
    fix = "give --reference MODEL, or its checkpoint as the second argument"
    return [Problem("--metric", "mia_reference needs the weights of the model trained without the forget set", fix)]


def _other_rows(model: _Given, retained: _Given, rows: Mapping[str, int]) -> list[Problem]:
    """Note results of other data, once a file: rows are known by their number there."""
    problems = []
    for given, title in ((model, "results"), (retained, "results of the retained model")):
        logged = given.logs.metrics if given.logs else {}
        for metric, n in rows.items():
            found = (logged.get(metric) or {}).get("value_by_index")
            if given.logs and found and sorted(found) != sorted(map(str, range(n))):
                what = f"{metric} has {len(found)} rows, and the split has {n}, numbered from 0"
                fix = "give the --split that it was evaluated on"
                problems.append(Problem(f"{title} {given.logs.file}", what, fix))
                break
    return problems


def _wanted(asked: Asked, known: Sequence[str], model: _Given, retained: _Given) -> list[str]:
    if asked.metrics:
        return [name for name in known if name in asked.metrics]
    logged = {name for given in (model, retained) if given.logs for name in given.logs.metrics}
    left_out = {name for name in SLOW if name not in logged}
    if known is KNOWN and asked.holdout is None:
        left_out |= {*NEEDS_HOLDOUT}
    if retained.weights is None:
        left_out.add("mia_reference")
    return [name for name in known if name not in left_out]


def _load(path: str | None, asked: Asked) -> CausalLM:
    assert path is not None
    return CausalLM.load(model_path(path), dtype=asked.dtype, device=asked.device)
