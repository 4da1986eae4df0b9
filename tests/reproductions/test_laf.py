from __future__ import annotations

from expunge.reproductions.classifier_world import digits_world
from expunge.reproductions.laf import PLACES, SUPERVISED, UNSUPERVISED, LAFReproduction, forgotten


def numbers(better: bool) -> dict[str, float]:
    """Made-up numbers in which LAF does all that is claimed, or none of it."""
    found: dict[str, float] = {}
    for place in PLACES:
        found[f"{place}_original_gap"] = 50.0
        for name in (*UNSUPERVISED, *SUPERVISED):
            found |= {f"{place}_{name}_gap": 5.0, f"{place}_{name}_ra": 80.0, f"{place}_{name}_ua": 50.0}
        found[f"{place}_laf_gap"] = 2.0 if better else 40.0
        found[f"{place}_laf_ra"] = 95.0 if better else 40.0
        found[f"{place}_laf_ua"] = found[f"{place}_laf_tau_20_ua"] = 90.0 if better else 10.0
    return found


def test_the_claim_holds_where_it_does_and_not_where_it_does_not() -> None:
    assert all(check.holds for check in LAFReproduction().judge([numbers(True)] * 3))
    assert not any(check.holds for check in LAFReproduction().judge([numbers(False)] * 3))


def test_every_variant_is_measured() -> None:
    world = digits_world(0, "class", hidden=(32, 16), quick=True)
    found = forgotten(
        world, "class", UNSUPERVISED, {"finetune": SUPERVISED["finetune"]}, {"epochs": 1, "vae_epochs": 1}
    )
    assert {f"class_{name}_gap" for name in (*UNSUPERVISED, "finetune", "original", "retrained_again")} <= set(found)
    assert found["class_retrained_gap"] == 0
    # Labels of the retain set are read by LAF+R alone, and it trains no more than the head.
    assert found["class_laf_repaired_ra"] >= found["class_laf_ra"]
