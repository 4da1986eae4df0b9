from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.general.concept_images import Infection, infer_concepts, paste, peaks, poisoned_images, shrunk
from expunge.tasks.attribution import asked_for_gradients
from expunge.tasks.examples import LabelledExamples

INFER = {"donor": None, "clusters": 4, "marks": None, "strength": 1e-5, "l1_ratio": 0.99}


def infection(**changed: Any) -> Infection:
    known: dict[str, Any] = {
        "patch": "localized", "labels": "targeted", "top": 1, "window": 0.4, "stride": 0.2, "localise": "windows",
        "steps": 4, "exclude_true_label": True, "seed": 0,
    }  # fmt: skip
    return Infection(**{**known, **changed})


@pytest.fixture
def setting(tiny_predictor: Any, tiny_rows: Any) -> tuple[Any, LabelledExamples, LabelledExamples]:
    """A model, four images of class 0 to forget, eighteen others to keep."""
    task = tiny_predictor("module")
    every = task.encode(tiny_rows("module", range(36)))
    gone = [i for i, t in enumerate(every.targets.tolist()) if t == 0]
    kept = [i for i in range(36) if i not in gone]
    return task, every.take(gone[:4]), every.take(kept)


def test_a_patch_stays_within_the_frame() -> None:
    image = torch.zeros(1, 5, 5)
    out = paste(image, torch.ones(1, 2, 3), 4, -1)
    assert out.sum() == 6
    assert (out[0, 3:, :3] == 1).all()
    assert image.sum() == 0


def test_a_shrunk_image_keeps_its_scale() -> None:
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    small = shrunk(image, 6)
    assert small.shape == (3, 6, 6)
    assert small.dtype == torch.uint8
    assert (small == 200).all()


def test_the_donor_is_what_the_model_confuses_most(setting: Any) -> None:
    task, forget, retain = setting
    found = infer_concepts(task, forget, retain, infection(patch="none"), **INFER)
    with torch.no_grad():
        likely = torch.softmax(task.statistics(forget).logits, -1).mean(0)
    assert found.donors == {0: 1 + int(likely[1] < likely[2])}
    assert found.bottleneck is None, "relabelling alone reads no concept"


@pytest.mark.parametrize("localise", ["windows", "gradients"])
def test_the_patch_is_the_donors_own_at_the_place_of_the_concept(setting: Any, localise: Any) -> None:
    task, forget, retain = setting
    how = infection(localise=localise)
    found = infer_concepts(task, forget, retain, how, **INFER)
    new, facts = poisoned_images(task, forget, retain, found, how)
    (donor,) = found.donors.values()
    assert (new.targets == donor).all()
    assert facts["labels changed"] == 4
    bottleneck, size = found.bottleneck, found.windows.size
    assert bottleneck is not None
    with asked_for_gradients(task):
        here = peaks(task, forget, found, bottleneck.top(0, 1)[0], how)
    assert isinstance(new.inputs, torch.Tensor)
    assert isinstance(retain.inputs, torch.Tensor)
    of_donor = retain.inputs[retain.targets == donor]
    known = of_donor.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    for i, k in enumerate(here):
        top, left = found.windows.corners[k]
        inside = new.inputs[i][:, top : top + size, left : left + size]
        assert (known == inside).flatten(1).all(1).any(), "the patch is a piece of an image of the donor class"
        outside = torch.ones(8, 8, dtype=torch.bool)
        outside[top : top + size, left : left + size] = False
        assert torch.equal(new.inputs[i][:, outside], forget.inputs[i][:, outside])


def test_marked_concepts_are_used_by_name(setting: Any) -> None:
    task, forget, retain = setting
    marks = [["stripes"]] * 4 + [["dots"] if t == 1 else ["rings"] for t in retain.targets.tolist()]
    found = infer_concepts(task, forget, retain, infection(), **{**INFER, "marks": marks, "donor": 2})
    assert found.bottleneck is not None
    assert found.bottleneck.concepts.names == ("dots", "rings", "stripes")
    facts = found.facts(("a", "b", "c"), 2)
    assert facts["donors"] == {"a": "c"}
    assert next(iter(facts["strongest"]["a"])) == "stripes"


@pytest.mark.parametrize("patch", ["center", "random", "full", "none"])
def test_the_ablations(setting: Any, patch: str) -> None:
    task, forget, retain = setting
    how = infection(patch=patch, labels="keep")
    found = infer_concepts(task, forget, retain, how, **INFER)
    new, facts = poisoned_images(task, forget, retain, found, how)
    assert torch.equal(new.targets, forget.targets)
    assert facts["images changed"] == (0 if patch == "none" else 4)
    if patch == "center":
        same = (new.inputs == forget.inputs).all(1).all(0)
        assert same[:2].all()
        assert not same[3:5, 3:5].any()


def test_random_labels_leave_the_true_one_out_unless_asked(setting: Any) -> None:
    task, forget, retain = setting
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    for exclude, labels in seen.items():
        for seed in range(10):
            how = infection(patch="none", labels="random", exclude_true_label=exclude, seed=seed)
            found = infer_concepts(task, forget, retain, how, **INFER)
            labels |= set(poisoned_images(task, forget, retain, found, how)[0].targets.tolist())
    assert seen == {True: {1, 2}, False: {0, 1, 2}}
