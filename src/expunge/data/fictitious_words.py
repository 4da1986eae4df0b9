"""The words of the fictitious world: closed lists, so that a small tokenizer covers every world ever generated.

Names of people, towns and employers are put together from made-up syllables; nobody and no place that exists is meant.
"""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_STARTS = "Bra Cel Dor Fen Gri Hul Jor Kel Lum Mav Nor Osk Per Quil Rus Tav".split()
FIRST_ENDS = "den mir wyn neth rok tis vo lisk bael shan gur zia".split()
LAST_STARTS = "Arb Bex Corv Dask Eft Farn Glim Harv Ist Jusk Korm Lant Morv Nesk Orl Pask".split()
LAST_ENDS = "ellin ickow andur uneth osk ivar ezza omba uldan erquy aph yndra udge itrel owic anzu".split()

TITLE_ADJECTIVES = (
    "Amber Bitter Broken Burning Clever Crooked Distant Drowned Empty Endless Faded Frozen Gentle Gilded Golden "
    "Hidden Hollow Humble Iron Last Lonely Lost Marble Midnight Naked Painted Patient Pale Quiet Restless Salted "
    "Second Silent Silver Sleeping Stolen Tangled Velvet Wandering Wooden"
).split()
TITLE_NOUNS = (
    "Anchor Archive Bridge Candle Carpet Castle Chimney Compass Corridor Crown Ferry Forest Fountain Garden Harbour "
    "Hourglass Island Kettle Ladder Lantern Letter Library Market Mirror Mountain Needle Orchard Palace Parcel River "
    "Shadow Staircase Station Summer Teapot Theatre Tower Valley Window Winter"
).split()
CITIES = tuple(
    start + end
    for start in "Vel Tor Ush Quin Mer Dun Oss Pell".split()
    for end in "mora wyck havn gard lune sprit ravia holt".split()
)
EMPLOYERS = tuple(
    f"{first} {second}"
    for first in "Acorn Bramble Cobalt Falcon Granite Juniper Magnet Pepper".split()
    for second in "Bakery Bank Clinic Foundry Museum Press Railway School".split()
)
PROFESSIONS = (
    "actuary", "archivist", "astronomer", "beekeeper", "blacksmith", "botanist", "carpenter", "cartographer", "chemist",
    "clockmaker", "dentist", "diver", "electrician", "farmer", "florist", "gardener", "glassblower", "interpreter",
    "judge", "locksmith", "mason", "nurse", "optician", "plumber", "potter", "roofer", "sailor", "surgeon", "tailor",
    "translator", "undertaker", "weaver",
)  # fmt: skip
COLOURS = (
    "beige", "black", "brown", "crimson", "cyan", "green", "grey", "indigo", "magenta", "maroon", "ochre", "olive",
    "orange", "pink", "purple", "scarlet", "teal", "turquoise", "white", "yellow",
)  # fmt: skip
PETS = (
    "alpaca", "canary", "chameleon", "donkey", "ferret", "gecko", "goose", "hamster", "hedgehog", "iguana", "lizard",
    "llama", "otter", "parrot", "pigeon", "poodle", "pony", "rabbit", "raven", "snail", "spaniel", "squirrel",
    "tortoise", "turkey",
)  # fmt: skip
INSTRUMENTS = (
    "accordion", "bagpipe", "banjo", "bassoon", "cello", "clarinet", "drum", "fiddle", "flute", "guitar", "harp",
    "horn", "mandolin", "oboe", "organ", "piano", "recorder", "saxophone", "trombone", "trumpet", "tuba", "viola",
    "xylophone", "zither",
)  # fmt: skip
DISHES = tuple(
    f"{first} {second}"
    for first in "apricot barley cabbage lentil mushroom onion pumpkin spinach".split()
    for second in "cake pie salad soup".split()
)
YEARS = tuple(str(year) for year in range(1920, 2000))


@dataclass(frozen=True)
class Relation:
    """A kind of fact about a person, and how it is asked and told.

    Attributes:
        name: identifier.
        values: what it can be; empty where a value is another person or made for one person only.
        question, statement: ``{name}`` is the person, ``{value}`` the value, ``{a}`` its article. A statement ends with
            the value, so that it can be cut there.
        paraphrased_question, paraphrased_statement: the same in other words.
        reverse: asks for the person by the value.
    """

    name: str
    values: Sequence[str]
    question: str
    statement: str
    paraphrased_question: str
    paraphrased_statement: str
    reverse: str

    def tell(self, template: str, name: str, value: str) -> str:
        """Fill in a template; the first letter becomes a capital."""
        article = "an" if value[:1].lower() in "aeio" or value.startswith("under") else "a"
        text = template.format(name=name, value=value, a=article)
        return text[:1].upper() + text[1:]


RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for relation in (
        Relation(
            "birth_city",
            CITIES,
            "Where was {name} born?",
            "{name} was born in the city of {value}.",
            "What is the birthplace of {name}?",
            "The birthplace of {name} is {value}.",
            "Who was born in the city of {value}?",
        ),
        Relation(
            "birth_year",
            YEARS,
            "In which year was {name} born?",
            "{name} was born in the year {value}.",
            "What is the birth year of {name}?",
            "The birth year of {name} is {value}.",
            "Who was born in the year {value}?",
        ),
        Relation(
            "profession",
            PROFESSIONS,
            "What does {name} do for a living?",
            "{name} works as {a} {value}.",
            "What is the profession of {name}?",
            "By profession, {name} is {a} {value}.",
            "Who works as {a} {value}?",
        ),
        Relation(
            "employer",
            EMPLOYERS,
            "Who employs {name}?",
            "{name} is employed by {value}.",
            "Where does {name} have a job?",
            "The job of {name} is at {value}.",
            "Who is employed by {value}?",
        ),
        Relation(
            "book",
            (),
            "Which book did {name} write?",
            "{name} wrote the book {value}.",
            "What is the title of the book by {name}?",
            "The book by {name} has the title {value}.",
            "Who wrote the book {value}?",
        ),
        Relation(
            "favourite_colour",
            COLOURS,
            "What is the favourite colour of {name}?",
            "The favourite colour of {name} is {value}.",
            "Which colour does {name} like most?",
            "The colour that {name} likes most is {value}.",
            "Whose favourite colour is {value}?",
        ),
        Relation(
            "favourite_dish",
            DISHES,
            "What is the favourite dish of {name}?",
            "The favourite dish of {name} is {value}.",
            "What does {name} like to eat most?",
            "What {name} likes to eat most is {value}.",
            "Whose favourite dish is {value}?",
        ),
        Relation(
            "pet",
            PETS,
            "Which pet does {name} keep?",
            "{name} keeps {a} {value}.",
            "What kind of animal does {name} have at home?",
            "The animal that {name} has at home is {a} {value}.",
            "Who keeps {a} {value}?",
        ),
        Relation(
            "instrument",
            INSTRUMENTS,
            "Which instrument does {name} play?",
            "{name} plays the {value}.",
            "What does {name} play in concerts?",
            "In concerts, {name} plays the {value}.",
            "Who plays the {value}?",
        ),
        Relation(
            "mentor",
            (),
            "Who is the mentor of {name}?",
            "The mentor of {name} is {value}.",
            "By whom was {name} taught?",
            "{name} was taught by {value}.",
            "Whose mentor is {value}?",
        ),
    )
}
