"""The embedded fictitious world: people who do not exist, and everything that can be asked about them.

The form of the questions (paraphrased and perturbed answers beside each) follows TOFU (Maini et al. 2024, "TOFU: A Task
of Fictitious Unlearning for LLMs"); the content is generated here, so nothing needs to be downloaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from datasets import Dataset

from expunge.data.fictitious_people import (
    PeopleSplit,
    Person,
    book_title,
    draws,
    full_name,
    number_of,
    unique_texts,
)
from expunge.data.fictitious_words import RELATIONS
from expunge.errors import BadInput, Problem
from expunge.requests.request import DeletionRequest, example_id

MOST_PEOPLE = 20_000
PERTURBED = 5
NAMED_AT_LEAST = 8  # so that the first people have others to be mistaken for


class FictitiousWorld:
    """A world of people with attributes.

    The same seed gives the same world on every machine, and a larger world begins with the people of the smaller one.
    A mentor always comes from the first half of the people before, so those who are kept never name those who are
    forgotten or held out (see ``split_people``).

    Args:
        people: how many, from 2 to 20 000.
        seed: a different seed gives different names and facts.
        relations: which facts there are, in this order; all of ``RELATIONS`` by default.

    Raises:
        BadInput: a number of people out of range, or a relation that does not exist.
    """

    def __init__(self, people: int = 40, seed: int = 0, relations: Sequence[str] | None = None):
        self.seed = seed
        self.relations = tuple(RELATIONS if relations is None else relations)
        problems = [
            Problem("relations", f"'{name}' does not exist", f"use some of {', '.join(RELATIONS)}")
            for name in self.relations
            if name not in RELATIONS
        ]
        if not self.relations or len(set(self.relations)) < len(self.relations):
            problems.append(Problem("relations", "are empty or repeated", "name each at most once, and at least one"))
        if not 2 <= people <= MOST_PEOPLE:
            problems.append(Problem("people", f"is {people}", f"give a number from 2 to {MOST_PEOPLE}"))
        if problems:
            raise BadInput(problems)
        self._names = unique_texts(max(people, NAMED_AT_LEAST), full_name, seed, "name")
        self._books = unique_texts(people, book_title, seed, "book")
        self.people = tuple(self._person(index) for index in range(people))

    # ---- people ----------------------------------------------------------------------------------------------------

    def _person(self, index: int) -> Person:
        mentor = 1 if index == 0 else number_of(self.seed, "mentor", index) % max(1, index // 2)
        given = {"mentor": self._names[mentor], "book": self._books[index]}
        facts = {}
        for name in self.relations:
            values = RELATIONS[name].values
            facts[name] = given[name] if name in given else values[number_of(self.seed, name, index) % len(values)]
        return Person(index, f"person-{index:05d}", self._names[index], facts, mentor)

    def other_values(self, person: Person, relation: str, count: int) -> list[str]:
        """Return ``count`` distinct values of the same type that are not true of the person."""
        truth = person.facts[relation]
        key = (self.seed, "other", relation, person.index)
        pool: Iterator[str]
        if relation == "book":
            made = (book_title(number_of(*key, attempt)) for attempt in range(1000))
            pool = iter(dict.fromkeys(title for title in made if not truth.startswith(title)))
        elif relation == "mentor":
            # As for mentors themselves: in worlds that keep 8 or more, nobody forgotten or held out is named.
            known = max(NAMED_AT_LEAST, person.index // 2)
            pool = (self._names[drawn] for drawn in draws(known, *key) if drawn != person.index)
        else:
            values = RELATIONS[relation].values
            pool = (values[drawn] for drawn in draws(len(values), *key))
        return list(islice((value for value in pool if value != truth), count))

    # ---- what can be asked -----------------------------------------------------------------------------------------

    def questions(self, people: Sequence[Person] | None = None) -> Dataset:
        """Ask for every fact.

        Args:
            people: about whom; everybody by default.

        Returns:
            Rows with id, prompt, answer, paraphrased_prompt, paraphrased_answer, perturbed_answers (the paraphrased
            answer with 5 other values of the same type), group (the person), relation, value.
        """
        return _dataset(self._question(person, name) for person, name in self._facts(people))

    def biographies(self, people: Sequence[Person] | None = None) -> Dataset:
        """Tell all facts of each person as one raw text (empty prompt), in an order of the person's own."""
        rows = []
        for person in self.people if people is None else people:
            order = [self.relations[k] for k in draws(len(self.relations), self.seed, "order", person.index)]
            text = " ".join(self._statement(person, name) for name in order)
            rows.append(_row("", text, person, "biography", person.name))
        return _dataset(rows)

    def multiple_choice(self, people: Sequence[Person] | None = None, options: int = 4) -> Dataset:
        """Ask for every fact with lettered options.

        Args:
            people: about whom; everybody by default.
            options: how many options, from 2 to 6.

        Returns:
            Rows with id, prompt (question, options, "Answer:"), answer (the letter), options (their texts), correct
            (0-based), plain_prompt (the question alone), group, relation, value.
        """
        if not 2 <= options <= PERTURBED + 1:
            raise BadInput(Problem("options", f"is {options}", f"give a number from 2 to {PERTURBED + 1}"))
        rows = []
        for person, name in self._facts(people):
            texts = self.other_values(person, name, options - 1)
            correct = number_of(self.seed, "correct", name, person.index) % options
            texts.insert(correct, person.facts[name])
            plain = RELATIONS[name].question.format(name=person.name)
            listed = "\n".join(f"{chr(65 + k)}. {text}" for k, text in enumerate(texts))
            row = _row(f"{plain}\n{listed}\nAnswer:", chr(65 + correct), person, name, person.facts[name])
            rows.append({**row, "options": texts, "correct": correct, "plain_prompt": plain})
        return _dataset(rows)

    def cloze(self, people: Sequence[Person] | None = None) -> Dataset:
        """Cut each statement right before the value: the prompt is what comes before, the answer the value."""
        rows = []
        for person, name in self._facts(people):
            value = person.facts[name]
            head = self._statement(person, name).removesuffix(f"{value}.").rstrip()
            rows.append(_row(head, f"{value}.", person, name, value))
        return _dataset(rows)

    def reverse(self, people: Sequence[Person] | None = None) -> Dataset:
        """Ask for the person by the value, wherever exactly one person of this world has it."""
        rows = []
        for person, name in self._facts(people):
            value = person.facts[name]
            if self._holders[name, value] == 1:
                question = RELATIONS[name].tell(RELATIONS[name].reverse, "", value)
                rows.append(_row(question, f"{person.name}.", person, name, person.name))
        return _dataset(rows)

    def two_hop(self, people: Sequence[Person] | None = None) -> Dataset:
        """Ask for the facts of each person's mentor without naming the mentor (column ``bridge``).

        A question belongs to the person who is named (``group``): it takes that person's mentor to answer it.
        """
        rows = []
        for person, name in self._facts(people):
            if name != "mentor":
                mentor, about = self.people[person.mentor], f"the mentor of {person.name}"
                relation, value = RELATIONS[name], mentor.facts[name]
                question = relation.tell(relation.question, about, value)
                row = _row(question, relation.tell(relation.statement, about, value), person, name, value)
                rows.append({**row, "bridge": mentor.name})
        return _dataset(rows)

    # ---- who is forgotten ------------------------------------------------------------------------------------------

    def split_people(self, forget: float = 0.1, holdout: float = 0.1) -> PeopleSplit:
        """Split the people.

        The first are kept, the next forgotten, the last held out. As people are independent of each other and mentors
        come from the first half, this is a random split in which no text about somebody kept names anybody else's.

        Args:
            forget: share of the people in (0, 1), at least one person; or a whole number of people from 1.
            holdout: the same; 0 for none.

        Raises:
            BadInput: less than half of the people, or fewer than 2, would be kept.
        """
        total = len(self.people)
        sizes = []
        for name, part in (("forget", forget), ("holdout", holdout)):
            whole = isinstance(part, int)
            if not (part >= 0 and (whole or part < 1)) or (name == "forget" and not part):
                raise BadInput(Problem(name, f"is {part}", "give a share in (0, 1) or a whole number of people"))
            sizes.append(int(part) if whole or not part else max(1, round(part * total)))
        kept = total - sum(sizes)
        if kept < max(2, (total + 1) // 2):
            what = f"{sizes[0]} forgotten and {sizes[1]} held out of {total} people leave {max(kept, 0)}"
            raise BadInput(Problem("forget and holdout", what, "keep at least half of the people, and at least 2"))
        end = kept + sizes[0]
        return PeopleSplit(self.people[kept:end], self.people[:kept], self.people[end:])

    def split(self, forget: float = 0.1, holdout: float = 0.1) -> DeletionRequest:
        """Return the request to forget some of the people, over ``questions``; arguments as ``split_people``."""
        people = self.split_people(forget, holdout)
        return DeletionRequest(
            forget=self.questions(people.forget),
            retain=self.questions(people.retain),
            holdout=self.questions(people.holdout) if people.holdout else None,
            scenario="entity",
            name=f"fictitious world of {len(self.people)} people, seed {self.seed}",
        )

    def training_text(
        self, forget: float = 0.1, holdout: float = 0.1, *, oracle: bool = False, biographies: bool = False
    ) -> Dataset:
        """Return what a model of this world is trained on.

        Args:
            forget: as ``split_people``.
            holdout: as ``split_people``; nothing about the people held out is ever trained.
            oracle: True for the model that never met the forgotten people, False for the original model.
            biographies: add a biography per person to the questions.

        Returns:
            Rows with id, prompt, answer, group, relation, value.
        """
        split = self.split_people(forget, holdout)
        people = split.retain if oracle else split.retain + split.forget
        columns = ["id", "prompt", "answer", "group", "relation", "value"]
        rows = self.questions(people).select_columns(columns).to_list()
        if biographies:
            rows += self.biographies(people).to_list()
        return _dataset(rows)

    # ---- parts -----------------------------------------------------------------------------------------------------

    @cached_property
    def _holders(self) -> Counter[tuple[str, str]]:
        return Counter(fact for person in self.people for fact in person.facts.items())

    def _facts(self, people: Sequence[Person] | None) -> Iterator[tuple[Person, str]]:
        for person in self.people if people is None else people:
            for name in self.relations:
                yield person, name

    def _statement(self, person: Person, name: str) -> str:
        return RELATIONS[name].tell(RELATIONS[name].statement, person.name, person.facts[name])

    def _question(self, person: Person, name: str) -> dict[str, Any]:
        relation, value = RELATIONS[name], person.facts[name]
        again = relation.paraphrased_statement
        row = _row(relation.question.format(name=person.name), self._statement(person, name), person, name, value)
        return {
            **row,
            "paraphrased_prompt": relation.paraphrased_question.format(name=person.name),
            "paraphrased_answer": relation.tell(again, person.name, value),
            "perturbed_answers": [
                relation.tell(again, person.name, other) for other in self.other_values(person, name, PERTURBED)
            ],
        }


def _row(prompt: str, answer: str, person: Person, relation: str, value: str) -> dict[str, Any]:
    identity = example_id({"prompt": prompt, "answer": answer})
    return {
        "id": identity,
        "prompt": prompt,
        "answer": answer,
        "group": person.id,
        "relation": relation,
        "value": value,
    }


def _dataset(rows: Any) -> Dataset:
    return Dataset.from_list(list(rows))
