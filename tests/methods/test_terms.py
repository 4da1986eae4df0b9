"""The retain half of forget-plus-retain objectives."""

from __future__ import annotations

from expunge.methods.terms import RetainConfig


def test_each_choice_is_one_term() -> None:
    assert RetainConfig(retain="none").retain_terms() == ()
    (nll,) = RetainConfig(retain="nll", retain_weight=0.3).retain_terms()
    assert (nll.streams, nll.reduction, nll.weight, nll.reference) == (("retain",), "token_mean", 0.3, "none")
    (kl,) = RetainConfig(retain="kl").retain_terms()
    assert (kl.reduction, kl.reference, kl.positions) == ("row_mean", "rows", "answer")


def test_parity_averages_over_padding_as_the_reference_does() -> None:
    (kl,) = RetainConfig(retain="kl", retain_positions="attended", parity=True).retain_terms()
    assert kl.positions == "all"
    (kl,) = RetainConfig(retain="kl", retain_positions="attended").retain_terms()
    assert kl.positions == "attended"
