from __future__ import annotations

import pytest

from expunge.data.columns import recognise
from expunge.data.problems import ProblemList


@pytest.mark.parametrize(
    ("found", "kind", "names"),
    [
        (["question", "answer"], "pair", {"prompt": "question", "answer": "answer"}),
        (["prompt", "completion", "n"], "pair", {"prompt": "prompt", "answer": "completion"}),
        (["text", "n"], "text", {"text": "text"}),
        (["messages", "prompt"], "messages", {"messages": "messages"}),
        (["text", "question", "answer"], "pair", {"prompt": "question", "answer": "answer"}),
        (
            ["question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"],
            "pair",
            {
                "prompt": "question",
                "answer": "answer",
                "paraphrased_prompt": "paraphrased_question",
                "paraphrased_answer": "paraphrased_answer",
                "perturbed_answers": "perturbed_answer",
            },
        ),
    ],
)
def test_recognised_by_themselves(found: list[str], kind: str, names: dict[str, str]) -> None:
    problems = ProblemList()
    layout = recognise(found, "f", problems)
    assert layout is not None
    assert (layout.kind, layout.names) == (kind, names)
    assert not problems


def test_mapping_wins() -> None:
    problems = ProblemList()
    layout = recognise(["question", "answer", "gold", "text"], "f", problems, {"answer": "gold"})
    assert layout is not None
    assert layout.names == {"prompt": "question", "answer": "gold"}
    text = recognise(["question", "answer", "body"], "f", problems, {"text": "body"})
    assert text is not None
    assert text.kind == "text"


@pytest.mark.parametrize(
    ("found", "mapping", "said"),
    [
        (["question", "anwser"], None, ["rename 'anwser'", "its columns are 'question', 'anwser'"]),
        (["Question", "Answer"], None, ["'prompt': 'Question'", "'answer': 'Answer'"]),
        (["a", "b"], None, ["for the prompt", "for the answer", "messages"]),
        ([], None, ["its columns are none"]),
        (["prompt", "question", "answer"], None, ["both mean the prompt"]),
        (["question", "answer"], {"anser": "answer"}, ["did you mean 'answer'"]),
        (["question", "answer"], {"answer": "questions"}, ["'questions'", "'question'"]),
        (["prompt", "text"], None, ["for the answer"]),
    ],
)
def test_problems_say_what_is_there_and_what_to_do(
    found: list[str], mapping: dict[str, str] | None, said: list[str]
) -> None:
    problems = ProblemList()
    assert recognise(found, "f.csv", problems, mapping) is None
    text = "\n".join(map(str, problems.all()))
    for part in said:
        assert part in text
