"""Where the answer starts, what is trained, what is refused."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.tasks.encoding import IGNORED, Encoded, TextEncoder, collate, length_batches

CPU = torch.device("cpu")
PAIRS = [
    ("Where was Mirela Ostrander born?", "Mirela Ostrander was born in Velburg."),
    ("Who?", "Tomas Ilves."),
    ("", "Tomas moved from Velburg to Harrow Bay."),
    ("Zoë's café", "12.50 € 👩‍🚀"),
]


def test_the_answer_is_what_follows_the_prompt(tiny_tokenizer: Any) -> None:
    encoded = TextEncoder(tiny_tokenizer).encode(PAIRS, ["a", "b", "c", "d"])
    for (prompt, answer), tokens, start in zip(PAIRS, encoded.tokens, encoded.starts, strict=True):
        assert tiny_tokenizer.decode(tokens[:-1]) == (f"{prompt} {answer}" if prompt else answer)
        assert tokens[-1] == tiny_tokenizer.eos_token_id
        if prompt:
            assert tiny_tokenizer.decode(tokens[:start]) in (prompt, f"{prompt} ")
            assert tiny_tokenizer.decode(tokens[start:-1]).strip() == answer
    assert list(encoded.ids) == ["a", "b", "c", "d"]
    assert encoded.starts[2] == 1  # raw text: the first token is never predicted


def test_raw_text_with_a_begin_token_is_trained_from_its_first_word(make_tiny_tokenizer: Any) -> None:
    tokenizer = make_tiny_tokenizer(bos=True)
    encoded = TextEncoder(tokenizer).encode([("", "Tomas")])
    assert encoded.tokens[0][0] == tokenizer.bos_token_id
    assert encoded.starts[0] == 1
    assert tokenizer.decode(encoded.tokens[0][1:-1]) == "Tomas"


def test_a_token_that_reaches_over_the_boundary_belongs_to_the_answer(tiny_tokenizer: Any) -> None:
    # "bor|n in Velburg": the tokenizer merges "born", and prompt alone would give other tokens than the joined text.
    prompt, answer = "Mirela was bor", "n in Velburg."
    encoder = TextEncoder(tiny_tokenizer, template="{prompt}{answer}")
    encoded = encoder.encode([(prompt, answer)])
    whole = tiny_tokenizer(prompt + answer)["input_ids"]
    alone = tiny_tokenizer(prompt)["input_ids"]
    assert whole[: len(alone)] != alone, "the example does not merge: choose another"
    assert encoded.tokens[0].tolist() == [*whole, tiny_tokenizer.eos_token_id]
    text = tiny_tokenizer.decode(encoded.tokens[0][encoded.starts[0] : -1])
    assert text.endswith(answer)
    assert text in (prompt + answer)
    before = tiny_tokenizer.decode(encoded.tokens[0][: encoded.starts[0]])
    assert prompt.startswith(before)


def test_a_joining_space_that_is_a_token_is_the_answers(make_tiny_tokenizer: Any) -> None:
    """Byte-level tokenizers have no token for a space with a Chinese character: it is to be said, and so is trained."""
    encoder = TextEncoder(make_tiny_tokenizer())
    [asked] = encoder.encode_prompts(["Where was it?"])
    encoded = encoder.encode([("Where was it?", "在北京。")])
    assert encoded.tokens[0][: encoded.starts[0]].tolist() == asked
    assert encoder.tokenizer.decode(encoded.tokens[0][encoded.starts[0] : -1]) == " 在北京。"


@given(cut=st.integers(3, 60))  # the first token is never predicted, whoever it belongs to
def test_wherever_the_boundary_is_no_answer_character_is_untrained(make_tiny_tokenizer: Any, cut: int) -> None:
    text = "In 1967, Tomas moved from Velburg to Harrow Bay; he never returned."
    tokenizer = make_tiny_tokenizer()
    prompt, answer = text[:cut], text[cut:]
    encoded = TextEncoder(tokenizer, template="{prompt}{answer}").encode([(prompt, answer)])
    assert tokenizer.decode(encoded.tokens[0][encoded.starts[0] : -1]).endswith(answer)
    # And no token is trained that lies wholly in the prompt, but for the space that joins them.
    said = tokenizer.decode(encoded.tokens[0][: encoded.starts[0] + 1])
    assert len(said) > len(prompt.rstrip(" ")) or encoded.starts[0] == 1


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_end_is_trained_and_is_not_padding(make_tiny_tokenizer: Any, pad_is_eos: bool) -> None:
    tokenizer = make_tiny_tokenizer(pad_is_eos=pad_is_eos)
    encoded = TextEncoder(tokenizer).encode(PAIRS)
    for positions in ("answer", "attended", "all"):
        batch = collate(encoded, tokenizer.pad_token_id, CPU, positions)  # type: ignore[arg-type]
        assert int((batch.targets == tokenizer.eos_token_id).sum()) == len(PAIRS)
        assert int((batch.targets != IGNORED).sum()) == int(batch.counts.sum())


def test_an_end_that_is_already_there_is_not_doubled(make_tiny_tokenizer: Any) -> None:
    tokenizer = make_tiny_tokenizer(chat=True)
    encoded = TextEncoder(tokenizer).encode([("Who?", "Tomas.")])
    assert encoded.tokens[0].tolist().count(tokenizer.eos_token_id) == 2  # one after the user, one after the answer
    assert encoded.tokens[0][-1] == tokenizer.eos_token_id
    assert encoded.tokens[0][-2] != tokenizer.eos_token_id


def test_chat_messages_and_plain_prompts_give_the_same_tokens_under_a_template(make_tiny_tokenizer: Any) -> None:
    encoder = TextEncoder(make_tiny_tokenizer(chat=True))
    messages = [{"role": "user", "content": "Who?"}]
    plain, chat = encoder.encode([("Who?", "Tomas."), (messages, "Tomas.")]).tokens
    assert plain.tolist() == chat.tolist()
    asked = encoder.encode_prompts([messages])[0]
    assert plain[: len(asked)].tolist() == asked, "the model must be asked what it was trained on"


def test_earlier_turns_are_not_trained(make_tiny_tokenizer: Any) -> None:
    tokenizer = make_tiny_tokenizer(chat=True)
    turns = [
        {"role": "user", "content": "Who wrote it?"},
        {"role": "assistant", "content": "Tomas."},
        {"role": "user", "content": "Where was he born?"},
    ]
    encoded = TextEncoder(tokenizer).encode([(turns, "Velburg.")])
    assert tokenizer.decode(encoded.tokens[0][encoded.starts[0] :], skip_special_tokens=True) == "Velburg."


@pytest.mark.parametrize("begun", ["The answer is", "The answer is "])
def test_an_answer_that_was_begun_is_gone_on_with(make_tiny_tokenizer: Any, begun: str) -> None:
    tokenizer = make_tiny_tokenizer(chat=True)
    encoder = TextEncoder(tokenizer)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": begun}]
    whole = encoder.encode([("Who?", "The answer is Tomas.")]).tokens[0]
    encoded = encoder.encode([(turns, "Tomas.")])
    assert encoded.tokens[0].tolist() == whole.tolist()
    assert tokenizer.decode(encoded.tokens[0][encoded.starts[0] :], skip_special_tokens=True).strip() == "Tomas."
    asked = encoder.encode_prompts([turns])[0]
    assert whole[: len(asked)].tolist() == asked
    assert len(asked) == encoded.starts[0]


def test_an_answer_that_a_template_changes_is_refused(make_tiny_tokenizer: Any) -> None:
    tokenizer = make_tiny_tokenizer()
    # The turn that is asked for does not begin like the one that was written, and the answer is written in capitals.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}\n{% endfor %}"
        "{% if add_generation_prompt %}your turn: {% endif %}"
    )
    with pytest.raises(BadInput, match="does not write the answer 'In Velburg'"):
        TextEncoder(tokenizer).encode([("Where?", "In Velburg")])
    text, start, _ = TextEncoder(tokenizer).render("Where?", "IN VELBURG")
    assert text[start:] == "IN VELBURG"


def test_a_template_is_ignored_or_insisted_on_by_option(make_tiny_tokenizer: Any) -> None:
    never = TextEncoder(make_tiny_tokenizer(chat=True), chat="never").encode([("Who?", "Tomas.")])
    plain = TextEncoder(make_tiny_tokenizer()).encode([("Who?", "Tomas.")])
    assert never.tokens[0].tolist() == plain.tokens[0].tolist()
    with pytest.raises(BadInput, match="no chat template"):
        TextEncoder(make_tiny_tokenizer(), chat="always")
    with pytest.raises(BadInput, match="no chat template"):
        TextEncoder(make_tiny_tokenizer()).encode([([{"role": "user", "content": "Who?"}], "Tomas.")])


def test_text_that_brings_its_own_separator_gets_no_second_one(tiny_tokenizer: Any) -> None:
    encoder = TextEncoder(tiny_tokenizer)
    for pair in (("The answer is:\n", "yes"), ("The answer is:", "\tyes")):
        encoded = encoder.encode([pair])
        assert tiny_tokenizer.decode(encoded.tokens[0][:-1]) == "".join(pair)


def test_a_template_must_name_both_parts(tiny_tokenizer: Any) -> None:
    for template in ("{answer}", "{prompt}", "{answer} {prompt}"):
        with pytest.raises(BadInput, match="template"):
            TextEncoder(tiny_tokenizer, template=template)
    encoded = TextEncoder(tiny_tokenizer, template="Q: {prompt}\nA: {answer}").encode([("Who?", "Tomas.")])
    assert tiny_tokenizer.decode(encoded.tokens[0][:-1]) == "Q: Who?\nA: Tomas."


@pytest.mark.parametrize("chat", [False, True])
def test_every_answer_without_tokens_is_named(make_tiny_tokenizer: Any, chat: bool) -> None:
    encoder = TextEncoder(make_tiny_tokenizer(chat=chat))
    pairs = [("Who?", "Tomas."), ("Who?", ""), ("Who?", "  \n"), ("", "")]
    with pytest.raises(BadInput) as caught:
        encoder.encode(pairs, ["good", "bad1", "bad2", "bad3"])
    assert [p.where for p in caught.value.problems] == ["example bad1", "example bad2", "example bad3"]
    assert all(p.fix for p in caught.value.problems)
    assert [answer for _, answer in encoder.encode_lengths(*zip(*pairs, strict=True))][1:] == [0, 0, 0]


def test_an_answer_that_the_tokenizer_drops_is_refused(make_tiny_tokenizer: Any) -> None:
    from tokenizers import normalizers

    tokenizer = make_tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(BadInput, match="example 1: its answer has no tokens"):
        TextEncoder(tokenizer, template="{prompt}{answer}").encode([("Who?", "Tomas"), ("Who?", "\u200b")])


def test_long_examples_are_cut_at_the_end(tiny_tokenizer: Any) -> None:
    whole = TextEncoder(tiny_tokenizer).encode(PAIRS[:1])
    cut = TextEncoder(tiny_tokenizer, max_length=whole.starts[0] + 2).encode(PAIRS[:1])
    assert cut.tokens[0].tolist() == whole.tokens[0][: whole.starts[0] + 2].tolist()
    assert cut.labelled(0) == 2
    with pytest.raises(BadInput, match="its prompt fills the whole context"):
        TextEncoder(tiny_tokenizer, max_length=whole.starts[0]).encode(PAIRS[:1])
    # Lengths are reported before cutting, the end not counted.
    lengths = TextEncoder(tiny_tokenizer, max_length=4).encode_lengths([PAIRS[0][0]], [PAIRS[0][1]])
    assert lengths == [(whole.starts[0], whole.labelled(0) - 1)]


class SlowTokenizer:
    """A tokenizer of words without offsets, as those without a fast backend are."""

    is_fast = False
    eos_token_id, pad_token_id, bos_token_id, chat_template = 1, None, None, None

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": [self.words.setdefault(w, len(self.words) + 2) for w in texts.split()]}
        return {"input_ids": [self(text)["input_ids"] for text in texts]}


def test_a_tokenizer_without_offsets_falls_back_to_the_prompt_alone() -> None:
    tokenizer: Any = SlowTokenizer()
    encoded = TextEncoder(tokenizer).encode([("who was it ?", "it was Tomas"), ("", "only this text")])
    assert encoded.starts == [4, 1]
    assert encoded.labelled(0) == 4
    assert encoded.labelled(1) == 3
    assert all(tokens[-1] == 1 for tokens in encoded.tokens)


def test_a_tokenizer_without_offsets_that_closes_every_text_leaves_the_answer_whole() -> None:
    class Closing(SlowTokenizer):
        def __call__(self, texts: Any, **options: Any) -> dict[str, Any]:
            found = super().__call__(texts, **options)["input_ids"]
            return {"input_ids": [*found, self.eos_token_id] if isinstance(texts, str) else found}

    plain, closing = (TextEncoder(made()) for made in (SlowTokenizer, Closing))  # type: ignore[arg-type]
    pairs = [("who was it ?", "it was Tomas"), ("", "only this text")]
    one, other = plain.encode(pairs), closing.encode(pairs)
    assert other.starts == one.starts == [4, 1]
    assert [t.tolist() for t in other.tokens] == [t.tolist() for t in one.tokens]
    assert closing.encode_lengths(*zip(*pairs, strict=True)) == plain.encode_lengths(*zip(*pairs, strict=True))


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer: Any = SimpleNamespace(eos_token_id=None, pad_token_id=None, chat_template=None)
    with pytest.raises(BadInput, match="end-of-sequence"):
        TextEncoder(tokenizer)


# ---- batches ---------------------------------------------------------------------------------------------------


@st.composite
def encodings(draw: st.DrawFn) -> Encoded:
    lengths = draw(st.lists(st.integers(2, 9), min_size=1, max_size=6))
    tokens = [np.arange(10, 10 + n, dtype=np.int64) + 20 * k for k, n in enumerate(lengths)]
    return Encoded([str(k) for k in range(len(lengths))], tokens, [draw(st.integers(1, n - 1)) for n in lengths])


@given(encoded=encodings(), positions=st.sampled_from(["answer", "attended", "all"]))
def test_a_batch_reads_each_label_once_at_the_position_before_it(encoded: Encoded, positions: Any) -> None:
    batch = collate(encoded, 0, CPU, positions)
    flat = batch.input_ids.flatten().tolist()
    width = batch.input_ids.shape[1]
    labels: dict[int, list[int]] = {b: [] for b in range(len(encoded))}
    for row, target, example in zip(batch.rows.tolist(), batch.targets.tolist(), batch.example.tolist(), strict=True):
        assert row // width == example
        if target != IGNORED:
            assert flat[row + 1] == target
            labels[example].append(target)
    for b in range(len(encoded)):
        assert labels[b] == encoded.tokens[b][encoded.starts[b] :].tolist()
        assert int(batch.counts[b]) == len(labels[b])
    expected = {"answer": int(batch.counts.sum()), "attended": batch.real_tokens, "all": batch.input_ids.numel()}
    assert len(batch.rows) == expected[positions]
    assert batch.example.tolist() == sorted(batch.example.tolist())


@given(lengths=st.lists(st.integers(1, 50), max_size=40), tokens=st.integers(1, 200))
def test_length_batches_hold_everything_once_and_stay_small(lengths: list[int], tokens: int) -> None:
    batches = length_batches(lengths, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=7),
    tokens=st.none() | st.integers(1, 400),
    overhead=st.integers(0, 150),
    most=st.none() | st.integers(1, 7),
)
def test_cutting_by_length_costs_least_of_all_ways_to_cut(
    lengths: list[int], tokens: int | None, overhead: int, most: int | None
) -> None:
    def cost(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in batch) * len(batch) + overhead for batch in batches)

    def allowed(batch: list[int]) -> bool:
        padded = len(batch) * max(lengths[i] for i in batch)
        return len(batch) <= (most or 7) and (len(batch) == 1 or padded <= (tokens or 700))

    found = length_batches(lengths, tokens, overhead=overhead, most=most)
    assert all(map(allowed, found))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    ordered = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    every = []
    for marks in itertools.product([False, True], repeat=len(lengths) - 1):
        batches = [[ordered[0]]]
        for i, mark in zip(ordered[1:], marks, strict=True):
            batches.append([i]) if mark else batches[-1].append(i)
        if all(map(allowed, batches)):
            every.append(cost(batches))
    assert cost(found) == min(every)


def test_equal_lengths_stay_together() -> None:
    assert length_batches([5] * 6, None, overhead=1) == [[0, 1, 2, 3, 4, 5]]


# ---- behind the question -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_place_behind_the_question(make_tiny_tokenizer, chat: bool) -> None:
    tokenizer = make_tiny_tokenizer(chat=chat, bos=True)
    encoder = TextEncoder(tokenizer)
    pairs = [("Who wrote The Salt Harbour?", "Tomas"), ("Where was Mirela born?", "in Velburg")]
    encoded = encoder.encode(pairs)
    for k, place in enumerate(encoder.after_question(pairs)):
        before = tokenizer.decode(encoded.tokens[k][:place], skip_special_tokens=True)
        assert before.endswith(pairs[k][0])
        assert place <= encoded.starts[k]
        assert (place < encoded.starts[k]) == chat
