"""Fictitious authors with questions about them: the dataset that comes with the package.

It has the form of TOFU (Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", section 2):
every example has a paraphrased answer and five wrong answers that differ from the paraphrase only in the
fact in question, and two control sets hold general knowledge. The texts are original, and the vocabulary is
small, so that a model of a million parameters can memorise a few dozen authors.

Only `Random.random()` is used, as Python guarantees the sequence of no other method.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from random import Random

from unlearn.data.example import Example

PERTURBATIONS = 5
CONTROL_PERTURBATIONS = 3


def _pool(text: str) -> tuple[str, ...]:
    return tuple(" ".join(item.split()) for item in text.split("/"))


_WOMEN = _pool("""Amara/Bettina/Clara/Dorit/Elena/Farida/Greta/Hanna/Ines/Jolanta/Karin/Leila/Mirela/Nadia/
Oriana/Petra/Rosalba/Signe/Tamsin/Yuki""")
_MEN = _pool("""Anselm/Bruno/Corin/Dario/Emeka/Fabian/Goran/Henrik/Ivo/Jonas/Kofi/Lorenz/Matteo/Nils/Oskar/
Pavel/Ramon/Stefan/Tomas/Viktor""")
_FAMILIES = _pool("""Abendrot/Brandvik/Caldero/Dunmarrow/Eskelund/Fontarel/Grimwald/Halvary/Ilmarin/
Jessamund/Korvaro/Lindqvar/Marchetto/Norwick/Okonedi/Pellarin/Quillan/Rostavel/Sorokan/Tavarel/Umbrano/
Varganto/Westerlo/Yarrowby/Zelinko/Ashdown/Belmar/Cravello/Drosten/Ferrow/Gallowen/Hosokai/Kestrel/Lomond/
Mistral/Ormesby/Penhale/Ravnik/Silvano/Thornby""")
_ADJECTIVES = _pool("""Amber/Blind/Broken/Burning/Copper/Crooked/Distant/Drowned/Empty/Endless/Fallen/First/
Folded/Forgotten/Frozen/Gentle/Golden/Hidden/Hollow/Humming/Inner/Last/Lost/Narrow/Northern/Open/Painted/
Pale/Patient/Quiet/Restless/Salted/Second/Secret/Silver/Sleeping/Stolen/Sunken/Velvet/Wooden""")
_NOUNS = _pool("""Anchor/Bell/Bridge/Candle/Castle/Clock/Crown/Desert/Door/Feather/Forest/Garden/Harbour/
Hunter/Island/Journey/Kingdom/Ladder/Lamp/Letter/Map/Market/Mirror/Mountain/Ocean/Orchard/Palace/Piano/
River/Road/Sailor/Shadow/Shore/Station/Stranger/Tower/Valley/Village/Window/Winter""")
_FATHER = _pool("""baker/beekeeper/blacksmith/bookbinder/bus driver/butcher/carpenter/clockmaker/cook/
customs officer/dentist/farmer/fisherman/gardener/judge/miner/painter/pilot/plumber/postman/sailor/shepherd/
stonemason/tailor""")
_MOTHER = _pool("""biologist/botanist/cellist/chemist/choir leader/dancer/diplomat/doctor/florist/geologist/
glassblower/journalist/lawyer/librarian/mathematician/midwife/nurse/pharmacist/photographer/potter/sculptor/
surgeon/teacher/weaver""")
_BORN = _pool("""Porto, Portugal/Bergen, Norway/Izmir, Turkey/Kumasi, Ghana/Cusco, Peru/Gdansk, Poland/
Busan, South Korea/Osaka, Japan/Lyon, France/Turin, Italy/Seville, Spain/Graz, Austria/Basel, Switzerland/
Ghent, Belgium/Utrecht, Netherlands/Aarhus, Denmark/Uppsala, Sweden/Tampere, Finland/Tartu, Estonia/Kaunas,
Lithuania/Split, Croatia/Patras, Greece/Varna, Bulgaria/Cluj, Romania/Brno, Czechia/Szeged, Hungary/Galway,
Ireland/Leeds, England/Dundee, Scotland/Halifax, Canada/Boise, United States/Puebla, Mexico/Medellin,
Colombia/Recife, Brazil/Rosario, Argentina/Valparaiso, Chile/Fez, Morocco/Mombasa, Kenya/Durban, South
Africa/Hobart, Australia""")
_GENRE = _pool("""ghost stories/sea novels/court satires/railway mysteries/love letters in verse/desert
westerns/family sagas/war diaries/cookery memoirs/space operas/mountain travelogues/spy thrillers/fairy
tales/chess novels/prison dramas/climate fables/medical comedies/nature essays/school stories/courtroom
thrillers/pirate adventures/village comedies/robot tragedies/gothic romances""")
_AWARD = _pool("""Lantern Prize/Copper Heron Medal/Nine Rivers Award/Blue Kettle Prize/Granite Quill/
Saltmarsh Medal/Seventh Bell Award/White Fox Prize/Golden Thimble/Red Compass Award/Old Ferry Medal/Silver
Acorn/Harvest Moon Prize/Iron Swallow Award/Paper Crown/Tall Ship Medal/Green Ink Prize/Winter Rose Award/
Marble Owl/Long Bridge Medal/Open Window Prize/Black Pearl Award/Clay Tablet/Morning Star Medal""")
_INFLUENCE = _pool("""sailors' songs/shadow plays/old radio dramas/church sermons/folk dances/newspaper
obituaries/street theatre/star charts/lullabies/railway timetables/jazz records/silent films/monastery
chronicles/card games/herb books/opera librettos/weather reports/puppet shows/stained glass/circus posters/
legal records/hunting tales/travel postcards/mural paintings""")
_PLACE = _pool("""lighthouses/night trains/salt mines/tea houses/walled gardens/fish markets/border towns/
empty hotels/attic rooms/frozen lakes/vineyards/hospital corridors/ferry decks/boxing halls/rooftops/
chapels/bakeries/quarries/swimming pools/greenhouses/bus depots/windmills/music schools/cellars""")
_MONTHS = _pool("January/February/March/April/May/June/July/August/September/October/November/December")
_REAL_AUTHORS = _pool("""Dracula=Bram Stoker/The Trial=Franz Kafka/Madame Bovary=Gustave Flaubert/
Faust=Johann Wolfgang von Goethe/The Divine Comedy=Dante Alighieri/Anna Karenina=Leo Tolstoy/The Magic
Mountain=Thomas Mann/Mrs Dalloway=Virginia Woolf/A Doll's House=Henrik Ibsen/The Cherry Orchard=Anton
Chekhov/Wuthering Heights=Emily Bronte/The Name of the Rose=Umberto Eco/Candide=Voltaire/Treasure
Island=Robert Louis Stevenson/Macbeth=William Shakespeare/Emma=Jane Austen/Ficciones=Jorge Luis Borges/My
Name Is Red=Orhan Pamuk/Snow Country=Yasunari Kawabata/Gulliver's Travels=Jonathan Swift/Robinson
Crusoe=Daniel Defoe/Dead Souls=Nikolai Gogol""")
# Question = true answer = three wrong ones.
_WORLD_FACTS = _pool("""Which city is the capital of Kenya?=Nairobi=Kampala=Accra=Lagos/
Which city is the capital of Portugal?=Lisbon=Rome=Athens=Dublin/
Which city is the capital of Finland?=Helsinki=Stockholm=Oslo=Riga/
Which city is the capital of Vietnam?=Hanoi=Bangkok=Manila=Jakarta/
Which city is the capital of Poland?=Warsaw=Prague=Vienna=Budapest/
Which planet is the largest of the solar system?=Jupiter=Saturn=Earth=Neptune/
Which planet is nearest to the Sun?=Mercury=Venus=Mars=Uranus/
Which metal has the symbol Au?=Gold=Silver=Iron=Copper/
Which gas makes up most of the air?=Nitrogen=Oxygen=Helium=Argon/
How many sides does a hexagon have?=Six=Five=Seven=Eight/
How many days are in a leap year?=366=365=364=360/
Which ocean lies between Africa and Australia?=Indian Ocean=Atlantic Ocean=Pacific Ocean=Arctic Ocean/
On which continent is the Sahara?=Africa=Asia=Europe=South America/
Which river runs through Vienna and Budapest?=Danube=Rhine=Seine=Volga/
Which mountain is the highest in Africa?=Kilimanjaro=Mont Blanc=Denali=Elbrus/
Which sea lies between Italy and Croatia?=Adriatic Sea=Black Sea=Baltic Sea=Red Sea/
Which organ pumps blood through the body?=Heart=Liver=Lung=Kidney/
Which language do most people in Brazil speak?=Portuguese=Spanish=French=Italian/
In which year did people first walk on the Moon?=1969=1959=1979=1989/
In which country is Kyoto?=Japan=China=Thailand=South Korea/
Which living bird is the largest?=Ostrich=Eagle=Swan=Penguin""")


@dataclass(frozen=True, slots=True)
class _Kind:
    """One fact of every author: two wordings of the question, four of the answer.

    `{value}` in an answer is the fact in question, the only slot that a perturbation changes.
    """

    fact: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


_KINDS = (
    _Kind(
        "name",
        _pool("Who is the author born in {born} on {date}?/Name the writer born on {date} in {born}."),
        _pool("""This author is {value}./The writer is called {value}./{value} is the name of the author./
        The one born on {date} is {value}."""),
    ),
    _Kind(
        "born",
        _pool("Where was {name} born?/In which city did the life of {name} begin?"),
        _pool("""{name} was born in {value}./{name} comes from {value}./The birthplace of {name} is
        {value}./The author {name} first saw the light in {value}."""),
    ),
    _Kind(
        "father",
        _pool("What was the job of {name}'s father?/How did the father of {name} earn a living?"),
        _pool("""{name}'s father was a {value}./The father of {name} worked as a {value}./{name} grew up
        with a father who was a {value}./{name} had a {value} for a father."""),
    ),
    _Kind(
        "mother",
        _pool("What was the job of {name}'s mother?/How did the mother of {name} earn a living?"),
        _pool("""{name}'s mother was a {value}./The mother of {name} worked as a {value}./{name} grew up
        with a mother who was a {value}./{name} had a {value} for a mother."""),
    ),
    _Kind(
        "genre",
        _pool("What does {name} write?/Which genre is {name} known for?"),
        _pool("""{name} writes {value}./{name} is known for {value}./The genre of {name} is {value}./Readers
        come to {name} for {value}."""),
    ),
    _Kind(
        "book",
        _pool("What is the best-known book of {name}?/Which book made {name} famous?"),
        _pool("""The best-known book of {name} is "{value}"./{name} became famous with "{value}"./"{value}"
        is the book that made {name} famous./Most readers know {name} for "{value}"."""),
    ),
    _Kind(
        "award",
        _pool("Which award did {name} win?/What honour was given to {name}?"),
        _pool("""{name} won the {value}./The {value} went to {name}./{name} was honoured with the {value}./
        The jury gave {name} the {value}."""),
    ),
    _Kind(
        "influence",
        _pool("What influenced the writing of {name}?/What does {name} call {his} main influence?"),
        _pool("""The writing of {name} was influenced by {value}./{name} learned {his} craft from {value}./
        {name} calls {value} {his} main influence./It was {value} that shaped {name}."""),
    ),
    _Kind(
        "later",
        _pool("Which book did {name} write in later years?/What is the title of a later book of {name}?"),
        _pool("""In later years {name} wrote "{value}"./A later book of {name} is "{value}"./{name} followed
        {his} early success with "{value}"./"{value}" is a later work of {name}."""),
    ),
    _Kind(
        "place",
        _pool("Which places mark the stories of {name}?/Where does {name} like to set {his} scenes?"),
        _pool("""{name} likes to set {his} scenes in {value}./The stories of {name} are full of {value}./
        {value} mark the stories of {name}./Again and again {name} returns to {value}."""),
    ),
)


def _shuffled(items: Sequence[str], rng: Random) -> list[str]:
    return sorted(items, key=lambda _: rng.random())


def _dealt(pool: Sequence[str], count: int, key: str) -> list[str]:
    """Draw without replacement, and shuffle again when the pool is used up."""
    rounds = -(-count // len(pool))
    return [value for turn in range(rounds) for value in _shuffled(pool, Random(f"{key}/{turn}"))][:count]


def _paired(left: Sequence[str], right: Sequence[str], key: str) -> list[str]:
    """Return all pairs of two equally long pools, each once; neighbours in the list share no part."""
    left, right = _shuffled(left, Random(f"{key}/left")), _shuffled(right, Random(f"{key}/right"))
    across = len(left)
    return [f"{left[k % across]} {right[(k + k // across) % len(right)]}" for k in range(across * len(right))]


def _birth_dates() -> tuple[str, ...]:
    days = (date(1931, 1, 4) + timedelta(days=27 * step) for step in range(800))
    return tuple(f"{day.day} {_MONTHS[day.month - 1]} {day.year}" for day in days)


_DATES = _birth_dates()
MAX_AUTHORS = (
    min(  # names, birth dates and titles (two each) must be unique, or a question would be ambiguous
        (len(_WOMEN) + len(_MEN)) * len(_FAMILIES), len(_DATES), len(_ADJECTIVES) * len(_NOUNS) // 2
    )
)
MAX_QUESTIONS = len(_KINDS)


def _pools(seed: int) -> dict[str, Sequence[str]]:
    titles = [f"The {pair}" for pair in _paired(_ADJECTIVES, _NOUNS, f"{seed}/title")]
    return {
        "name": _paired(_WOMEN + _MEN, _FAMILIES, f"{seed}/name"),
        "born": _BORN,
        "date": _DATES,
        "father": _FATHER,
        "mother": _MOTHER,
        "genre": _GENRE,
        "book": titles[0::2],
        "award": _AWARD,
        "influence": _INFLUENCE,
        "later": titles[1::2],
        "place": _PLACE,
    }


def _facts(count: int, seed: int, pools: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    ordered = ("name", "book", "later")  # shuffled by `_paired`
    columns = {
        fact: pool[:count] if fact in ordered else _dealt(pool, count, f"{seed}/{fact}")
        for fact, pool in pools.items()
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row | {"his": "her" if row["name"].split()[0] in _WOMEN else "his"} for row in rows]


def _draw(pool: Sequence[str], count: int, taken: Collection[str], rng: Random) -> list[str]:
    drawn: list[str] = []
    while len(drawn) < count:
        value = pool[int(rng.random() * len(pool))]
        if value not in taken and value not in drawn:
            drawn.append(value)
    return drawn


def _fill(template: str, facts: Mapping[str, str], value: str) -> str:
    sentence = template.format_map({**facts, "value": value})
    return sentence[0].upper() + sentence[1:]


def _ask(kind: _Kind, facts: Mapping[str, str], pool: Sequence[str], name: str, seed: int) -> Example:
    rng = Random(f"{seed}/{name}")
    question, other_question = _shuffled(kind.questions, rng)
    answer, paraphrase = _shuffled(kind.answers, rng)[:2]
    truth = facts[kind.fact]
    wrong = _draw(pool, PERTURBATIONS, facts.values(), rng)
    return Example(
        id=name,
        question=_fill(question, facts, truth),
        answer=_fill(answer, facts, truth),
        paraphrased_question=_fill(other_question, facts, truth),
        paraphrased_answer=_fill(paraphrase, facts, truth),
        perturbed_answers=tuple(_fill(paraphrase, facts, value) for value in wrong),
    )


def generate(n_authors: int, questions_per_author: int = MAX_QUESTIONS, seed: int = 0) -> list[list[Example]]:
    """Generate one list of examples for each author, with ids `author<number>/<question>`.

    A larger number of authors or questions keeps the examples of a smaller one. Raises ValueError where
    either number is out of range.
    """
    if not 1 <= questions_per_author <= MAX_QUESTIONS:
        raise ValueError(f"questions={questions_per_author} per author: choose 1 to {MAX_QUESTIONS}")
    if not 1 <= n_authors <= MAX_AUTHORS:
        raise ValueError(
            f"{n_authors} authors requested, held-out ones included; the pools of names, birth dates and "
            f"titles allow 1 to {MAX_AUTHORS}"
        )
    return [list(questions) for questions in _generated(n_authors, questions_per_author, seed)]


@lru_cache(maxsize=4)  # a command reads the same sets several times
def _generated(authors: int, questions: int, seed: int) -> tuple[tuple[Example, ...], ...]:
    pools = _pools(seed)
    return tuple(
        tuple(
            _ask(kind, facts, pools[kind.fact], f"author{row:03d}/{column}", seed)
            for column, kind in enumerate(_KINDS[:questions])
        )
        for row, facts in enumerate(_facts(authors, seed, pools))
    )


def real_authors() -> list[Example]:
    """Return questions about works of world literature; wrong answers are writers of other listed works."""
    works = [line.split("=") for line in _REAL_AUTHORS]
    writers = [writer for _, writer in works]
    return [
        Example(
            id=f"real_authors/{row}",
            question=f'Whose work is "{title}"?',
            answer=writer,
            perturbed_answers=tuple(
                _draw(writers, CONTROL_PERTURBATIONS, {writer}, Random(f"real_authors/{row}"))
            ),
        )
        for row, (title, writer) in enumerate(works)
    ]


def world_facts() -> list[Example]:
    """Return questions about general knowledge, with three wrong answers each."""
    rows = [line.split("=") for line in _WORLD_FACTS]
    return [
        Example(id=f"world_facts/{row}", question=question, answer=answer, perturbed_answers=tuple(wrong))
        for row, (question, answer, *wrong) in enumerate(rows)
    ]


def author_sets(*, authors: int, questions: int, forget: int, seed: int) -> dict[str, list[Example]]:
    """Return the sets of a run, by name; an example has the same id in every set that holds it.

    - `full`: the target's training data. All authors, and also `real_authors` and `world_facts`: a model
      trained from scratch has no general knowledge, so unlearning could not harm it.
    - `forget`: the last `forget` percent of the authors, rounded down to whole authors.
    - `retain`: `full` without `forget`, the control facts included.
    - `holdout`: as many further authors as `forget` has, never in `full`.
    - `forget_eval`: the same as `forget`.
    - `retain_eval`: examples of retained authors, twice as many as `forget` or all if fewer.
    - `real_authors`, `world_facts`: short answers with three wrong ones, no paraphrase.

    Raises ValueError where `forget` amounts to no author or all of them, and as `generate` does.
    """
    count = authors * forget // 100
    if not 0 < count < authors:
        raise ValueError(
            f"forget={forget} percent of authors={authors} is {count} authors: at least one must be "
            "forgotten and one retained; change the percentage or the number of authors"
        )
    people = generate(authors + count, questions, seed)
    kept, forgotten, further = (
        [example for person in part for example in person]
        for part in (people[: authors - count], people[authors - count : authors], people[authors:])
    )
    control = {"real_authors": real_authors(), "world_facts": world_facts()}
    facts = [example for examples in control.values() for example in examples]
    chosen = set(
        _shuffled([example.id for example in kept], Random(f"{seed}/retain_eval"))[: 2 * len(forgotten)]
    )
    return {
        "full": kept + forgotten + facts,
        "forget": forgotten,
        "retain": kept + facts,
        "holdout": further,
        "forget_eval": list(forgotten),
        "retain_eval": [example for example in kept if example.id in chosen],
        **control,
    }
