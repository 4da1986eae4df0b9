"""Reads a run of open-unlearning, or checkpoints and a split of TOFU: their metrics recomputed, and ours beside them.

``compare_run`` is what ``expunge import open-unlearning`` calls. Each model is loaded once and laid out twice: as they
do, for their numbers to rounding, and without the slips, for our audits. Conclusions are drawn from both by one rule.

Source: locuslab/open-unlearning (MIT) at d3d7cf9; Maini et al. 2024, TOFU (arXiv:2401.06121).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.audits.base import Finding
from expunge.audits.suite import run_audits
from expunge.benchmarks.open_unlearning_conclusions import Sides, conclusions
from expunge.benchmarks.open_unlearning_folder import Logs, PeerRun, read_run, read_template
from expunge.benchmarks.open_unlearning_logs import check_logs
from expunge.benchmarks.open_unlearning_metrics import ATTACKS, KNOWN, Metric, Seen, tofu_metrics
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
NEEDS_HOLDOUT = (*ATTACKS, "privleak")


@dataclass(frozen=True)
class Asked:
    """What to read and compare.

    Attributes:
        run: a run folder of theirs, or a checkpoint.
        retained_run: the same of the model trained without the forget set.
        model, reference: weights of the two, where the folders have none; a folder or a hub name.
        original: the model before unlearning; only our verdict reads it.
        split: "forget01", "forget05" or "forget10"; the run's own by default.
        data: folder of the TOFU files; ``$EXPUNGE_DATA/tofu`` or the hub by default.
        holdout: file of examples that the model never saw, for membership.
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
    model, retained, template = _read(asked)
    facts: dict[str, Any] = {
        "date": now(), "commit": commit(), "versions": versions(), "hardware": hardware(),
        "run": _name(asked.run), "retained_run": _name(asked.retained_run), "model": _name(model.weights),
        "retained_model": _name(retained.weights), "original": _name(asked.original),
    }  # fmt: skip
    checks = check_logs(model.logs, retained.logs) if model.logs else []
    if reason := _not_recomputed(model):
        return Comparison(facts | {"not_recomputed": reason}, checks)
    split, holdout = _data(asked, model, retained)
    progress.stage("loading models")
    tasks = {"unlearned": _load(model.weights, asked)}
    if retained.weights is not None:
        tasks["oracle"] = _load(retained.weights, asked)
    template = template or default_template(tasks["unlearned"])
    ours = {name: laid_out(task, template) for name, task in tasks.items()}
    if asked.original is not None:
        ours["original"] = laid_out(_load(asked.original, asked), template)
    wanted, sets = _wanted(asked, holdout is not None), sets_of(split, holdout)
    seen: dict[str, Seen] = {}
    for name, task in tasks.items():
        progress.stage(f"recomputing their metrics of the {TITLES[name]}")
        seen[name] = observe(task, template, sets, wanted, progress)
    theirs_retained = tofu_metrics(seen["oracle"]) if "oracle" in seen else None
    others = theirs_retained if theirs_retained is not None else retained.logs.metrics if retained.logs else None
    theirs = tofu_metrics(seen["unlearned"], others)
    progress.stage("asking our audits")
    findings, verdict = _audited(ours, replace(split.audit, holdout=holdout), split, wanted, model, progress)
    sides = Sides(
        theirs, theirs_retained, seen["unlearned"], seen.get("oracle"), findings, verdict,
        {role: list(rows["id"]) for role, rows in sets.items()}, groups_of(sets),
        ((others or {}).get("mia_min_k") or {}).get("agg_value"),
    )  # fmt: skip

    def rows(metrics: Mapping[str, Metric], given: _Given, who: str) -> list[MetricRow]:
        logged = given.logs.metrics if given.logs else {}
        names = [name for name in KNOWN if name in wanted and name in metrics]
        names += [name for name in logged if name not in names and not asked.metrics]
        return [MetricRow.of(n, logged.get(n), metrics.get(n), our_number(findings, n, who)) for n in names]

    # The retained model is what forget quality and PrivLeak compare with, so they say nothing about itself.
    alone = {n: metric for n, metric in (theirs_retained or {}).items() if n not in ("forget_quality", "privleak")}
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
    verdict = decide(evidence, removal_level=stated_level(str(model.weights)))
    return {finding.audit: finding for finding in result.findings}, verdict


def _read(asked: Asked) -> tuple[_Given, _Given, Template | None]:
    """Read both folders and the template; everything that is wrong with them is in one error."""
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
    for name in asked.metrics:
        if name not in KNOWN:
            problems.append(Problem("--metric", f"'{name}' is not recomputed here", near_names(name, list(KNOWN))))
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
    return model, retained, template


def _path(run: PeerRun | None) -> str | None:
    return str(run.checkpoint) if run and run.checkpoint else None


def _name(path: Any) -> str | None:
    """How a page names a path or a hub name: without the machine's folders."""
    if path is None:
        return None
    text = str(path)
    return Path(text).resolve().name if Path(text).is_absolute() else text


def _not_recomputed(model: _Given) -> str:
    if model.logs is not None and model.logs.suite != "TOFU":
        return "metrics of MUSE are not recomputed here; `expunge bench muse` measures them"
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
    if problems or name is None:
        raise BadInput(problems)
    split = load_split(find(asked.data), name)
    for given, title in ((model, "results"), (retained, "results of the retained model")):
        problems += _other_rows(given.logs, len(split.audit.forget), f"{title} {given.logs.file}" if given.logs else "")
    if problems:
        raise BadInput(problems)
    return split, read_examples(asked.holdout, role="holdout", duplicates="drop") if asked.holdout else None


def _other_rows(logs: Logs | None, rows: int, where: str) -> list[Problem]:
    """Note results whose forget set is not the split's: rows are known by their number there."""
    for metric in ("forget_Q_A_Prob", "forget_truth_ratio", "extraction_strength"):
        found = ((logs.metrics if logs else {}).get(metric) or {}).get("value_by_index")
        if found and sorted(found) != sorted(map(str, range(rows))):
            what = f"{metric} has {len(found)} rows, and the split has {rows}, numbered from 0"
            return [Problem(where, what, "give the --split that it was evaluated on")]
    return []


def _wanted(asked: Asked, holdout: bool) -> list[str]:
    chosen = [name for name in KNOWN if not asked.metrics or name in asked.metrics]
    return chosen if holdout else [name for name in chosen if name not in NEEDS_HOLDOUT]


def _load(path: str | None, asked: Asked) -> CausalLM:
    assert path is not None
    return CausalLM.load(model_path(path), dtype=asked.dtype, device=asked.device)
