"""Average gap: how far UA, RA, TA and MIA-efficacy are, on average, from those of the model that never saw the data.

Two numbers go by this name. Papers take the gap between *means* over trials, in which differences of opposite sign
cancel; the mean of the gaps of each trial to the oracle of the same seed does not let them. Both are here, as functions
of records and as an audit of one model against one or several oracles.

Source: Fan et al. 2024, SalUn (arXiv:2310.12508), section 6; Jia et al. 2023 (arXiv:2304.04934).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.audits.base import Audit, Estimate, Finding, Scalar
from expunge.audits.classification.svc_mia import REPORTED, SvcMia, svc_members
from expunge.audits.intervals import statistic_interval
from expunge.audits.observations import Observations
from expunge.audits.population_attack import attack_sides
from expunge.audits.prediction_features import prediction_features
from expunge.audits.unseen import NO_TEST, TEST, unseen_sets
from expunge.tasks.kinds import CLASSIFIERS

METRICS: Mapping[str, str] = {"ua": "UA", "ra": "RA", "ta": "TA", "mia": "MIA-efficacy"}
Record = Mapping[str, float]


def average_gap(record: Record, oracle: Record, metrics: Sequence[str] = tuple(METRICS)) -> float:
    """Return the mean over metrics of ``|m(unlearned) - m(oracle)|``.

    Args:
        record, oracle: metric -> value, in percent.
        metrics: which ones; by default UA, RA, TA and MIA-efficacy.

    Raises:
        ValueError: a metric is missing in one of them (it must not count as 0), or there is none.
    """
    missing = [name for name in metrics if name not in record or name not in oracle]
    if missing or not metrics:
        raise ValueError(f"no value of {', '.join(missing) or 'any metric'}: the average would be of something else")
    return float(np.mean([abs(record[name] - oracle[name]) for name in metrics]))


def gap_of_means(
    records: Sequence[Record], oracles: Sequence[Record], metrics: Sequence[str] = tuple(METRICS)
) -> float:
    """Return the average gap between the means over trials, as papers report it.

    Args:
        records, oracles: one record per trial; the two need not be as many.
        metrics: as in ``average_gap``.

    Raises:
        ValueError: no trials, or a metric that some of them lack.
    """
    return average_gap(_means(records, metrics), _means(oracles, metrics), metrics)


def mean_of_gaps(
    records: Sequence[Record], oracles: Sequence[Record], metrics: Sequence[str] = tuple(METRICS)
) -> float:
    """Return the mean over trials of the average gap to the oracle of the same trial; never below ``gap_of_means``.

    Args:
        records, oracles: one record per trial, in the same order.
        metrics: as in ``average_gap``.

    Raises:
        ValueError: no trials, unequally many, or a metric that some of them lack.
    """
    if not records or len(records) != len(oracles):
        raise ValueError(f"{len(records)} trials cannot be paired with {len(oracles)} oracles")
    pairs = zip(records, oracles, strict=True)
    return float(np.mean([average_gap(record, oracle, metrics) for record, oracle in pairs]))


def _means(records: Sequence[Record], metrics: Sequence[str]) -> dict[str, float]:
    if not records:
        raise ValueError("there are no trials")
    return {name: float(np.mean([record[name] for record in records])) for name in metrics if _in_all(name, records)}


def _in_all(name: str, records: Sequence[Record]) -> bool:
    return all(name in record for record in records)


class AverageGap(Audit):
    """Gap to the oracles in UA, RA, TA and MIA-efficacy; an oracle's own gap to the others is what seeds alone make.

    The interval resamples examples; the attack behind MIA-efficacy is taken as trained. Absolute differences do not
    average to 0 where nothing differs, so the number to compare with is that of an oracle.
    """

    id = "average_gap"
    title = "How far is the model, on average, from one that never saw the data?"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    needs = ("retain", "oracle")
    reads = tuple((role, "prediction") for role in ("forget", "retain", "holdout", TEST))
    paper = "Fan et al. 2024, SalUn (arXiv:2310.12508), section 6"
    Config = SvcMia.Config

    def prepare(self, seen: Observations) -> None:
        SvcMia(self.config).prepare(seen)

    def run(self, seen: Observations) -> Finding:
        if unseen_sets(seen, "unlearned")[0] is None:
            return Finding(self.id, "no data", note=NO_TEST)
        parts = {model: self._parts(seen, model) for model in seen.models}
        return Finding(
            self.id,
            scalars=[
                Scalar("gap_of_means", "Average gap to the oracles' means", "percentage points", digits=2),
                Scalar("mean_of_gaps", "Mean of the average gaps to each oracle", "percentage points", digits=2),
                *(Scalar(f"{m}_difference", f"{t} minus the oracles'", "percentage points", digits=2)
                  for m, t in METRICS.items()),
            ],
            estimates={model: self._estimates(seen, parts, model) for model in seen.models},
            attempted={"oracles": len(seen.oracles), "metrics": list(METRICS.values()), "parity": self.config.parity},
        )  # fmt: skip

    def _parts(self, seen: Observations, model: str) -> dict[str, dict[str, float]]:
        """Return metric -> example id -> 100 or 0, whose mean is the metric."""
        test, _ = unseen_sets(seen, model)
        forget, retain = seen.predictions(model, "forget"), seen.predictions(model, "retain")
        assert test is not None
        sides = attack_sides(retain, test, seed=seen.seed, parity=self.config.parity, most=self.config.most)
        known, unknown, asked = (prediction_features(p, self.config.parity)[REPORTED] for p in (*sides, forget))
        return {
            "ua": forget.by_id(100.0 * ~forget.correct),
            "ra": retain.by_id(100.0 * retain.correct),
            "ta": test.by_id(100.0 * test.correct),
            "mia": forget.by_id(100.0 * ~svc_members(known, unknown, asked)),
        }

    def _estimates(
        self, seen: Observations, parts: Mapping[str, Mapping[str, Mapping[str, float]]], model: str
    ) -> dict[str, Estimate]:
        others = [name for name in seen.oracles if seen.models[name] is not seen.models[model]]
        names = ["gap_of_means", "mean_of_gaps", *(f"{m}_difference" for m in METRICS)]
        if not others:
            return dict.fromkeys(names, Estimate(None, note="is the only oracle: nothing to compare with"))

        def interval(metrics: Sequence[str], kind: str) -> Estimate:
            samples = {f"{name} {m}": parts[name][m] for name in (model, *others) for m in metrics}

            def number(drawn: Mapping[str, NDArray[np.float64]]) -> float:
                own, *them = ({m: float(drawn[f"{n} {m}"].mean()) for m in metrics} for n in (model, *others))
                if kind == "gap_of_means":
                    return gap_of_means([own], them, metrics)
                if kind == "mean_of_gaps":
                    return mean_of_gaps([own] * len(them), them, metrics)
                return own[metrics[0]] - float(np.mean([one[metrics[0]] for one in them]))

            return statistic_interval(samples, number, seed=seen.seed, resamples=1000)

        found = {kind: interval(tuple(METRICS), kind) for kind in names[:2]}
        return found | {f"{m}_difference": interval((m,), "difference") for m in METRICS}
