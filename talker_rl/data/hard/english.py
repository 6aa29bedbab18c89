"""English rules: each draws one text from a generator; ``digits`` asks for figures instead of spoken numbers."""

from __future__ import annotations

from random import Random

from talker_rl.data.hard.draws import past_day, time_of_day
from talker_rl.data.hard.spoken import cardinal_en, decimal_en, digits_en, ordinal_en, year_en

NOUNS = ("lantern bridge kettle harbor ladder mirror orchard pebble violin window candle garden tunnel basket engine "
         "feather island market needle pillow ribbon saddle temple walnut anchor barrel cupboard dragon "
         "forest glacier").split()
SITES = "bridge harbor orchard garden tunnel island market temple forest glacier".split()
"""The nouns that trains go to and that open and close."""

ADJECTIVES = ("silver narrow hidden gentle broken distant golden quiet crooked ancient frozen clever hollow yellow "
              "simple bitter velvet wooden mighty restless").split()
VERBS = "carried painted followed repaired noticed borrowed lifted covered opened guarded moved measured".split()
PLACES = "behind the|under the|next to the|above the|across from the|inside the|near the|beyond the".split("|")
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

ALLITERATION = {
    "B": ("Bella Boris Brenda", "bought baked balanced", "big bitter black bumpy", "baskets biscuits beetles bottles"),
    "F": ("Fiona Felix Freda", "found fried folded", "fresh flat fuzzy five", "feathers flannels flutes figs"),
    "G": ("Greta Gordon Gilda", "grew grabbed gathered", "green grey grand gritty", "grapes goggles gloves geese"),
    "K": ("Karl Kitty Quentin", "kept cut carried", "crisp keen quick cool", "cookies kettles crabs quilts"),
    "P": ("Paula Percy Piper", "packed peeled polished", "plump pink plain proud", "plums peppers pots puppets"),
    "S": ("Simon Sasha Selma", "sold sorted sifted", "six soft silent silver", "seeds saucers sickles sausages"),
    "Sh": ("Sheila Sean Sharon", "shook shined shelved", "short sharp shiny shy", "shells shoes shawls shutters"),
    "Sl": ("Sloan Sly Slade", "slid sliced slung", "slim slow sleek slick", "slippers sleds slates sleeves"),
    "T": ("Tina Todd Tamsin", "took tied twisted", "tall tiny twelve tart", "tulips trumpets turtles towels"),
    "Th": ("Thea Thor Thelma", "thawed threw thinned", "thick thin thorny three", "thimbles thistles threads thorns"),
    "W": ("Wanda Walter Wilma", "washed weighed wove", "warm wild wet white", "walnuts wheels whistles wagons"),
}
"""First sound -> names, verbs, adjectives, nouns that begin with it."""

MINIMAL_PAIRS = (
    "sell shell sip ship seat sheet sore shore same shame sock shock",
    "light right lane rain lock rock glass grass fly fry long wrong",
    "free three fin thin fought thought first thirst fret threat deaf death",
    "vine wine vest west veil whale vet wet verse worse vow wow",
    "chip ship cheap sheep chair share chew shoe watch wash witch wish",
    "bat pat bear pear bill pill cub cup robe rope bush push",
    "den then dare there day they dough though doze those breed breathe",
)
"""Words in pairs that differ in one sound."""

PARTS_OF_DAY = {"in the morning": tuple(range(1, 12)), "in the afternoon": (12, 1, 2, 3, 4, 5),
                "in the evening": (6, 7, 8, 9), "at night": (9, 10, 11)}  # fmt: skip
"""Part of the day -> the hours that are said with it."""

RARE_FIRST = ("Ottoline Thaddeus Isolde Caspian Ximena Evander Saoirse Zebedee Philippa Leopold Aurelia Barnaby "
              "Calliope Demetrius Eudora Fitzgerald Guinevere Horatio Ingeborg Jacinda Kasimir Lysander Mireille "
              "Nikolai").split()
RARE_HEAD = ("Wojcie Featherstone Abercrom Okonk Vander Szyman Thistle Kowal Ramana Papado Zubiz Hjalmar Cholmon Mbeki "
             "Quattro Strelni Yamato Bartholo").split()
RARE_TAIL = "chowski haugh bie wood meer poulos arreta son deley kov vicius moor guchi nathan field berger".split()

PHRASES_ZH = "没关系 加油 慢慢来 原来如此 马上就到 不好意思 恭喜恭喜 一路顺风 辛苦了 随便看看 说来话长".split()
SHORT = ("yes no go stop why when who wow hush left right twelve eight oh hey thanks sorry never maybe wait listen "
         "look ouch fine sure enough almost again soon today").split()


def clause(rng: Random) -> str:
    """the narrow lantern followed the broken barrel behind the bridge"""
    a, b, c = rng.sample(NOUNS, 3)
    return (f"the {rng.choice(ADJECTIVES)} {a} {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} {b} "
            f"{rng.choice(PLACES)} {c}")


def an(word: str) -> str:
    """an island, a kettle"""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def sentence(text: str, mark: str = ".") -> str:
    """With a capital and a mark."""
    return text[0].upper() + text[1:] + mark


def repetition(rng: Random, digits: bool) -> str:
    a, b = rng.sample(NOUNS, 2)
    adjective, verb, times = rng.choice(ADJECTIVES), rng.choice(VERBS), rng.randint(2, 5)
    return rng.choice((
        sentence(f"the {', '.join([adjective] * (times + 1))} {a} {verb} the {b}"),
        sentence(f"{' '.join([a] * times)}, {' '.join([b] * times)}, and {' '.join([a] * times)} again"),
        sentence(f"the {a} {verb} the {b}, " * times + f"and then the {b} {verb} the {a}"),
        sentence(f"{'no, ' * times}I said the {a}, not the {b}, the {a}, the {adjective} {a}"),
        sentence(", ".join(f"the {a} {place} {b}" for place in rng.sample(PLACES, times))),
    ))  # fmt: skip


def tongue_twister(rng: Random, digits: bool) -> str:
    if rng.random() < 0.5:
        names, verbs, adjectives, nouns = (w.split() for w in ALLITERATION[rng.choice(sorted(ALLITERATION))])
        (a1, a2), (n1, n2) = rng.sample(adjectives, 2), rng.sample(nouns, 2)
        name, verb = rng.choice(names), rng.choice(verbs)
        return rng.choice((
            f"{name} {verb} {a1} {n1} for {a2} {n2}.",
            f"If {name} {verb} {a1} {n1}, who {verb} the {a2} {n2} that {name} forgot?",
            f"{a1.capitalize()} {n1}, {a2} {n1}, {a1} {n2}, {a2} {n2}: {name} {verb} them all.",
        ))  # fmt: skip
    words = rng.choice(MINIMAL_PAIRS).split()
    first, second, third = rng.sample([(words[i], words[i + 1]) for i in range(0, len(words), 2)], 3)
    return rng.choice((
        sentence(f"{first[0]}, {first[1]}, {second[0]}, {second[1]}, {third[1]}, {third[0]}"),
        sentence(f"say {first[0]} and {second[1]}, not {first[1]} and {second[0]}, then {third[0]} or {third[1]}"),
        sentence(f"{first[1]} {second[1]} {third[1]} and {first[0]} {second[0]} {third[0]}"),
    ))  # fmt: skip


def numbers(rng: Random, digits: bool) -> str:
    noun, other = rng.sample(NOUNS, 2)
    n, m = rng.randint(21, 9_999), rng.randint(10_000, 99_999_999)
    part = f"{rng.randint(0, 99)}.{rng.randint(101, 999)}"
    few, many, exact = ((f"{n:,}", f"{m:,}", part) if digits else (cardinal_en(n), cardinal_en(m), decimal_en(part)))
    rank = f"{n}{_suffix(n)}" if digits else ordinal_en(n)
    return rng.choice((
        sentence(f"there are {few} {noun}s and {many} {other}s in the book"),
        sentence(f"the {noun} weighs {exact} grams, the {other} {few}"),
        sentence(f"the {rank} {noun} stands {rng.choice(PLACES)} {other}"),
        sentence(f"take {few}, add {many}, and divide by {exact}"),
    ))  # fmt: skip


def _suffix(n: int) -> str:
    return "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")


def dates(rng: Random, digits: bool) -> str:
    day = past_day(rng)
    month, week = MONTHS[day.month - 1], DAYS[day.weekday()]
    if digits:
        date = rng.choice((f"{month} {day.day}, {day.year}", f"{day.day} {month} {day.year}"))
    else:
        date = f"{month} {ordinal_en(day.day)}, {year_en(day.year)}"
    return rng.choice((
        sentence(f"the {rng.choice(NOUNS)} was sold on {week}, {date}"),
        sentence(f"from {date} on, the {rng.choice(SITES)} stayed closed"),
        sentence(f"was it {week}, {date}, or the {week} before that", "?"),
    ))  # fmt: skip


def times(rng: Random, digits: bool) -> str:
    part, hour, minute = time_of_day(rng, PARTS_OF_DAY)
    if digits:
        time = f"{hour}:{minute:02d}"
    elif minute == 0:
        time = f"{cardinal_en(hour)} o'clock"
    else:
        time = f"{cardinal_en(hour)} {'oh ' if minute < 10 else ''}{cardinal_en(minute)}"
    time = f"{time} {'noon' if (hour, minute) == (12, 0) else part}"
    gate = rng.randint(2, 98)
    return rng.choice((
        sentence(f"the train to the {rng.choice(SITES)} leaves at {time}"),
        sentence(f"meet me at {time}, gate {gate if digits else cardinal_en(gate)}"),
        sentence(f"on {rng.choice(DAYS)} the {rng.choice(SITES)} opens at {time}"),
    ))  # fmt: skip


def money(rng: Random, digits: bool) -> str:
    whole, cents = rng.randint(2, 9_999), rng.randint(2, 99)
    unit, sign, part = rng.choice((("dollars", "$", "cents"), ("euros", "€", "cents"), ("pounds", "£", "pence")))
    price = f"{sign}{whole:,}.{cents:02d}" if digits else f"{cardinal_en(whole)} {unit} and {cardinal_en(cents)} {part}"
    return rng.choice((
        sentence(f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} costs {price}"),
        sentence(f"she paid {price} for {an(rng.choice(NOUNS))} and kept the receipt"),
        sentence(f"is {price} too much for {an(rng.choice(NOUNS))}", "?"),
    ))  # fmt: skip


def phone(rng: Random, digits: bool) -> str:
    parts = ["".join(rng.choice("0123456789") for _ in range(n)) for n in (3, 3, 4)]
    number = "-".join(parts) if digits else ", ".join(digits_en(p) for p in parts)
    return rng.choice((
        sentence(f"call the {rng.choice(SITES)} office at {number}"),
        sentence(f"my number is {number}, ask for the {rng.choice(NOUNS)}"),
        sentence(f"the code of the {rng.choice(NOUNS)} is {number}"),
    ))  # fmt: skip


def code_switching(rng: Random, digits: bool) -> str:
    a, b = rng.sample(PHRASES_ZH, 2)
    noun, verb = rng.choice(NOUNS), rng.choice(VERBS)
    return rng.choice((
        f"She {verb} the {noun}, said {a}, and left.",
        f"In Chinese you say {a} to a friend with {an(noun)}, and {b} to everyone else.",
        f"{a}, he whispered, {b}, and {verb} the {rng.choice(ADJECTIVES)} {noun}.",
    ))  # fmt: skip


def name(rng: Random) -> str:
    """Thaddeus Wojciehaugh."""
    return f"{rng.choice(RARE_FIRST)} {rng.choice(RARE_HEAD)}{rng.choice(RARE_TAIL)}"


def rare_names(rng: Random, digits: bool) -> str:
    first, second = name(rng), name(rng)
    return rng.choice((
        f"{first} met {second} near the {rng.choice(NOUNS)}.",
        f"Please welcome {first}, {second} and {name(rng)}.",
        f"Was the {rng.choice(NOUNS)} painted by {first} or by {second}?",
    ))  # fmt: skip


def punctuation(rng: Random, digits: bool) -> str:
    a, b, c = rng.sample(NOUNS, 3)
    adjective, verb = rng.choice(ADJECTIVES), rng.choice(VERBS)
    return rng.choice((
        f"“Wait... the {a}?!” she cried; (softly, then loudly) “no, no: the {adjective} {b}!”",
        f"The {a} (yes, the {adjective} one), the {b}, the {c}; all of it... {verb}!!",
        f"“{adjective.capitalize()}?” — “{adjective.capitalize()}!” — “The {a}, or the {b}?”",
        f"{a.capitalize()}, {b}; {a}: {b} ({adjective}), “{a}”... {b}?",
    ))  # fmt: skip


def very_short(rng: Random, digits: bool) -> str:
    word, second, third = (rng.choice(SHORT) for _ in range(3))
    return sentence(rng.choice((
        word, f"{word}, {second}", f"{word}, {second}, {third}", f"{word}, the {rng.choice(NOUNS)}",
        f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}")), rng.choice(".!?"))  # fmt: skip


def very_long(rng: Random, digits: bool) -> str:
    joints = (", and ", ", while ", ", because ", ", so ", "; then ", ", although ")
    out = clause(rng)
    for _ in range(rng.randint(6, 11)):
        out += rng.choice(joints) + clause(rng)
    return sentence(out)
