"""Reductions by hand, the KL term against torch in float64, and what an objective reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from expunge.tasks.statistics import Statistics
from expunge.training import objective as module
from expunge.training.objective import Objective, Term, kl_to_reference, negative_nll, nll, row_kl

# Two examples: rows 0-1 and 2-4; row 2 is a prompt row without a label.
VALUES = torch.tensor([1.0, 3.0, 100.0, 5.0, 11.0])


def stats(rows: Any = slice(None)) -> Statistics:
    targets = torch.tensor([0, 1, -100, 2, 0])
    return Statistics(torch.zeros(5, 3), targets, torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2, 2]), ["a", "b"])


def total(reduction: Any, values: torch.Tensor, positions: Any = "answer") -> float:
    term = Term("t", ("forget",), lambda _: values, reduction, positions=positions)
    return float(term.partial_sum([stats()]) / term.divisor([2, 2], 5))


def test_each_reduction_is_what_its_name_says() -> None:
    assert total("token_mean", VALUES) == (1 + 3 + 5 + 11) / 4
    assert total("row_mean", VALUES, "attended") == (1 + 3 + 100 + 5 + 11) / 5
    assert total("sequence_mean", VALUES) == ((1 + 3) / 2 + (5 + 11) / 2) / 2
    assert total("sequence_sum", VALUES) == ((1 + 3) + (5 + 11)) / 2
    assert total("example_mean", torch.tensor([7.0, 2.0])) == 4.5


def test_rows_that_another_term_asked_for_do_not_count() -> None:
    # Row 2 is read because some other term averages over prompts too.
    assert total("row_mean", VALUES, "answer") == (1 + 3 + 5 + 11) / 5


def test_reductions_over_answers_refuse_prompt_rows() -> None:
    for reduction in ("token_mean", "sequence_mean", "sequence_sum"):
        with pytest.raises(ValueError, match="answer rows"):
            Term("t", ("retain",), nll, reduction, positions="all")  # type: ignore[arg-type]
    one, other = (Term(p, ("retain",), nll, "row_mean", positions=p) for p in ("attended", "all"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompt rows"):
        Objective((one, other))


def test_what_is_read_follows_from_the_terms_that_weigh() -> None:
    forget = Term("f", ("forget",), negative_nll, "token_mean", reference="sequence_nll")
    retain = Term("r", ("retain",), kl_to_reference, "row_mean", reference="rows", positions="attended")
    off = Term("off", ("retain",), nll, "token_mean", weight=0.0)
    both = Objective((forget, retain, off))
    assert both.active() == (forget, retain)
    assert both.streams() == ("forget", "retain")
    assert (both.reference("forget"), both.reference("retain")) == ("sequence_nll", "rows")
    assert (both.positions("forget"), both.positions("retain")) == ("answer", "attended")
    assert [group for group, _ in both.components()] == [("forget",), ("retain",)]
    assert Objective((forget, off)).streams() == ("forget",)
    assert Objective((off, retain), anchor="retain").streams() == ("retain",)


def test_streams_that_a_term_couples_share_a_component() -> None:
    pair = Term("pair", ("forget", "retain"), lambda f, r: f.mean_nll - r.mean_nll, "example_mean")
    alone = Term("alone", ("retain",), nll, "token_mean")
    ((group, terms),) = Objective((pair, alone)).components()
    assert group == ("forget", "retain")
    assert set(terms) == {pair, alone}


def test_the_two_likelihood_terms_are_opposites() -> None:
    given = stats()
    assert torch.equal(nll(given), -negative_nll(given))
    assert nll(given)[2] == 0.0


# ---- KL --------------------------------------------------------------------------------------------------------


def logits(rows: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("chunk", [1, 14, 1 << 20])
def test_row_kl_is_the_forward_kl_of_torch(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    student, reference, pull = logits().requires_grad_(), logits(seed=1), torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    ours = row_kl(student, reference)
    (gradient,) = torch.autograd.grad(ours @ pull, student)
    plain = F.kl_div(student.log_softmax(-1), reference.softmax(-1), reduction="none").sum(-1)
    (expected,) = torch.autograd.grad(plain @ pull, student)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    closed = (student.softmax(-1) - reference.softmax(-1)) * pull[:, None]
    torch.testing.assert_close(gradient, closed, rtol=1e-10, atol=1e-12)


def test_row_kl_passes_gradcheck_and_takes_a_function_of_slices() -> None:
    student, reference = logits(5).requires_grad_(), logits(5, seed=1)
    assert torch.autograd.gradcheck(lambda s: row_kl(s, reference), (student,))
    assert torch.equal(row_kl(student, lambda rows: reference[rows]), row_kl(student, reference))


@given(shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_row_kl_is_zero_at_home_positive_elsewhere_and_blind_to_shifts(shift: float, seed: int) -> None:
    student, reference = logits(seed=seed), logits(seed=seed + 100)
    assert torch.allclose(row_kl(reference + shift, reference), torch.zeros(4, dtype=torch.float64), atol=1e-9)
    assert (row_kl(student, reference) > 0).all()
    torch.testing.assert_close(row_kl(student + shift, reference), row_kl(student, reference))


def test_kl_needs_a_reference() -> None:
    with pytest.raises(AssertionError):
        kl_to_reference(stats())


def test_terms_on_block_outputs_say_what_need_not_be_run() -> None:
    steer = Term("steer", ("forget",), nll, "example_mean", blocks=(2,))
    keep = Term("keep", ("retain",), nll, "example_mean", blocks=(2, 1), reference="rows")
    only = Objective((steer, keep))
    assert (only.blocks("forget"), only.blocks("retain")) == ((2,), (1, 2))
    assert (only.reference_blocks("forget"), only.reference_blocks("retain")) == ((), (1, 2))
    assert not any(only.reads_logits(s) for s in only.streams())
    assert [only.reference(s) for s in only.streams()] == ["none", "none"]
    both = Objective((steer, keep, Term("nll", ("retain",), nll, "token_mean")))
    assert [both.reads_logits(s) for s in both.streams()] == [False, True]


def test_the_answer_tokens_own_rows_do_not_mix_with_others() -> None:
    own = Term("own", ("forget",), nll, "row_mean", positions="label")
    assert Objective((own,)).positions("forget") == "label"
    with pytest.raises(ValueError, match="different prompt rows of the forget stream"):
        Objective((own, Term("nll", ("forget",), nll, "token_mean")))


def test_row_kl_takes_any_shape_and_low_precision_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(2)
    student, reference = (4 * torch.randn(2, 2, 3, 300, generator=generator)).bfloat16()
    student.requires_grad_()
    exact = student.detach().double().requires_grad_()
    plain = F.kl_div(exact.log_softmax(-1), reference.double().softmax(-1), reduction="none").sum(-1)
    ours = row_kl(student, reference)
    assert (ours.shape, ours.dtype) == ((2, 3), torch.float32)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(ours.mean(), student)
    (theirs,) = torch.autograd.grad(plain.mean(), exact)
    torch.testing.assert_close(mine.double(), theirs, rtol=2**-8, atol=1e-9)
