from __future__ import annotations

import numpy as np

from expunge.reproductions.concept_poisoning import (
    CLASSES,
    EDGE,
    GLYPHS,
    SIZE,
    ConceptPoisoningReproduction,
    covered,
    glyph_images,
    glyph_world,
    located,
    variants,
)


def numbers(holds: bool) -> dict[str, float]:
    """Made-up numbers in which all is as claimed, or nothing is."""
    found: dict[str, float] = {}
    for place in ("glyphs", "pictures"):
        for name in ("original", "retrained", "concept", "concept_random", "relabelled", "whole_donor"):
            found |= {f"{place}_{name}_forget": 0.0 if holds else 0.9, f"{place}_{name}_unseen": 0.0 if holds else 0.8}
            found |= {f"{place}_{name}_others": 0.9, f"{place}_{name}_probe": 0.1}
        found[f"{place}_concept_kept_forget"] = 0.9 if holds else 0.1
        found[f"{place}_relabelled_forget"] = 0.5 if holds else 0.9
        found[f"{place}_concept_others"] = 0.9 if holds else 0.5
        found[f"{place}_concept_probe"] = 0.1 if holds else 0.9
    for name in ("original", "masked", "replaced", "oracle"):
        found |= {f"texts_{name}_said": 1.0, f"texts_{name}_kept": 1.0}
    found |= {"texts_masked_said": 0.0 if holds else 1.0, "texts_masked_kept": 1.0 if holds else 0.2}
    found |= {"glyphs_planted_first": float(holds), "glyphs_covered": 0.9 if holds else 0.1}
    return found | {"glyphs_covered_by_chance": 0.05, "glyphs_covered_gradients": 0.5}


def test_the_claim_holds_where_it_does_and_not_where_it_does_not() -> None:
    assert all(check.holds for check in ConceptPoisoningReproduction().judge([numbers(True)] * 3))
    assert not any(check.holds for check in ConceptPoisoningReproduction().judge([numbers(False)] * 3))


def test_a_class_has_its_own_glyph_where_it_says() -> None:
    images = glyph_images(10, seed=3)
    assert len(set(images["id"])) == 40
    for row in images.with_format("numpy"):
        assert row["marks"][0] == row["label"]
        assert not set(row["marks"][1:]) & set(CLASSES)
        top, left = row["place"]
        inside = row["image"][top : top + EDGE, left : left + EDGE, 0]
        drawn = GLYPHS[row["label"]] > 0
        assert inside[drawn].mean() - inside[~drawn].mean() > 0.4
    assert images["image"] == glyph_images(10, seed=3)["image"]


def test_what_covers_a_glyph() -> None:
    corners = [(0, 0), (2, 0), (3, 0), (2, 2), (5, 5)]
    assert covered(corners, 5, [0, 0]).tolist() == [True, True, False, False, False]
    assert covered([(0, 0)], SIZE, [11, 11]).all()


def test_every_variant_is_measured() -> None:
    world = glyph_world(0, per_class=20, epochs=2)
    assert world.request.holdout is not None
    found = variants(
        "glyphs", world, world.request.holdout, {"concepts_column": "marks", "window": 0.3, "stride": 0.2, "epochs": 1}
    )
    for name in ("original", "retrained", "concept", "relabelled", "whole_donor", "concept_kept"):
        assert {f"glyphs_{name}_{what}" for what in ("forget", "unseen", "others")} <= set(found)
    assert found["glyphs_retrained_forget"] == 0
    assert all(0 <= found[f"glyphs_{name}_probe"] <= 1 for name in ("original", "retrained", "concept"))
    where = located(world)
    assert 0 < where["glyphs_covered_by_chance"] < 0.3
    assert np.isfinite(list(where.values())).all()
