"""English words by which names are told apart, and generic names of every kind."""

from __future__ import annotations


def _several(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words that are capitalised for their place in a sentence or a question, or by custom, and are not a name.
COMMON = frozenset(
    _several(
        """
        a about above after again all also although am an and another any are as at be because been before being below
        between both but by can could did do does doing down during each even every few first for from further had has
        have having he her here hers him his how however i if in into is it its itself last later many may me might more
        most much must my never new no nor not now of off on once one only or other our out over own perhaps please
        question answer same several she should since so some still such than that the their them then there these they
        this those though through to together too two under until up upon very was we were what when where whether which
        while who whom whose why will with within without would yes yet you your
        january february march april june july august september october november december
        monday tuesday wednesday thursday friday saturday sunday
        """
    )
)
# What stands in front of a place, of a work, and at the end of an organisation's name.
PLACED = frozenset(_several("in at from near to around into towards toward outside inside"))
PLACE_NOUNS = frozenset(_several("city town village country state island county region river district province"))
WORK_NOUNS = frozenset(_several("book books novel novels song film album story play poem series titled called"))
BODIES = frozenset(
    _several(
        """
        School University College Institute Academy Museum Library Hospital Company Foundry Bank Press Studio Studios
        Association Society Foundation Church Club Agency Group Works Factory Office Ministry
        """
    )
)
GENERIC: dict[str, tuple[str, ...]] = {
    "first": _several(
        """
        Anna Peter Laura David Susan Mark Helen Paul Emma Jack Alice Tom Kate Robert Julia Simon Claire Daniel Nina
        Martin Sarah Michael Lucy Andrew Rachel James Maria Kevin Ellen George Linda Eric Diana Frank Teresa Adam Rose
        Victor Irene Oscar
        """
    ),
    "surname": _several(
        """
        Smith Miller Brown Taylor Wilson Clark Lewis Walker Hall Young King Wright Scott Green Baker Adams Nelson
        Carter Mitchell Roberts Turner Phillips Campbell Parker Evans Edwards Collins Stewart Morris Rogers Reed Cook
        Morgan Bell Murphy Bailey Cooper Richardson Cox Howard
        """
    ),
    "place": _several(
        """
        London Paris Boston Chicago Rome Berlin Madrid Dublin Vienna Toronto Oxford Denver Seattle Lisbon Geneva
        Edinburgh Prague Sydney Bristol Dallas Oslo Athens Munich Austin Brussels Leeds Portland Milan Stockholm
        Montreal
        """
    ),
    "body": (
        "City School", "Central Library", "National Bank", "Royal Museum", "State University", "General Hospital",
        "United Press", "Public Institute", "Main Office", "Trading Company", "Social Club", "Northern College",
    ),
    "thing": (
        "Old House", "Long Road", "Blue Book", "Quiet Garden", "First Letter", "Last Summer", "Open Door", "Red Lamp",
        "Green Hill", "Small Boat", "White Horse", "Dark Wood", "Silver Key", "Winter Night", "New Bridge",
        "Broken Clock", "Distant Shore", "Morning Light", "Hidden Path", "Stone Wall",
    ),
}  # fmt: skip
