"""Wording and moves of the word problems: a story grows sentence by sentence, with a worked line per step.

A move either applies (one sentence and at least one worked line) or says that it does not fit the present
number. It knows nothing of splits, seeds or models; `twinrun.tasks.arithmetic` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

LIMIT = (
    199  # the largest value of a worked line; with the ranges below it decides what the built-ins can learn
)

SHE = ("Ana", "Clara", "Dina", "Emma", "Gita", "Hana", "Ines", "Julia", "Kira", "Lena", "Mia", "Nora")
HE = ("Ben", "Carl", "David", "Erik", "Felix", "Hugo", "Ivan", "Jonas", "Karl", "Leo", "Omar", "Paul")
ITEMS = (
    "apples", "books", "buttons", "cards", "coins", "cookies", "eggs", "flowers", "keys", "lemons",
    "marbles", "nuts", "pears", "pencils", "plums", "shells", "stamps", "stickers", "stones", "toys",
)  # fmt: skip
BOXES = ("boxes", "bags", "baskets", "jars")

STARTS = (
    "{who} has {k} {item}.",
    "{who} starts with {k} {item}.",
    "There are {k} {item} on the table of {who}.",
)
GAINS = (
    "{they} buys {k} more.", "{they} finds {k} {item}.", "{other} gives {who} {k} {item}.",
    "Then {who} gets {k} from {other}.", "{they} wins {k} more {item}.", "{they} picks up another {k}.",
)  # fmt: skip
LOSSES = (
    "{they} loses {k}.", "{they} gives {k} {item} to {other}.", "{they} sells {k} of them.",
    "{k} {item} are broken and thrown away.", "Then {other} takes {k} of them.",
    "{they} leaves {k} at school.",
)  # fmt: skip
TWICE = ("{they} doubles the number of {item}.", "{they} gets as many {item} again.")
THRICE = ("{they} triples the number of {item}.", "Now {who} makes it three times as many.")
HALVES = (
    "{they} gives half of the {item} to {other}.",
    "Half of the {item} get lost.",
    "{they} keeps only half.",
)
SHARES = (
    "{they} splits them equally into {k} parts and keeps one part.",
    "{they} puts them equally into {k} {box} and keeps one.",
)
MORE = ("{other} has {k} more {item} than {who}.", "{other} has as many {item} as {who} and {k} more.")
FEWER = ("{other} has {k} fewer {item} than {who}.", "{who} has {k} more {item} than {other}.")
TIMES = ("{other} has {word} as many {item} as {who}.",)
PACKS = ("{they} buys {n} {box} with {k} {item} each.", "{other} brings {n} {box} of {k} {item}.")
ASIDES = ("{who} is {k} years old.", "There are {k} people in the street.", "{other} has {k} chairs at home.",
          "The shop is {k} steps away.")  # fmt: skip
NOW = ("How many {item} does {who} have now?", "How many {item} does {who} have in the end?")
PRICE = ("{who} sells all the {item} for {k} euros each. How many euros does {who} get?",
         "Each of the {item} costs {k} euros. How many euros are all of them worth?")  # fmt: skip
TOGETHER = "How many {item} do {first} and {second} have together?"


@dataclass(slots=True)
class Story:
    """A problem under construction: who holds how many of what, what was said, what was worked out."""

    rng: Random
    who: str = ""
    other: str = ""
    item: str = ""
    value: int = 0
    before: int = 0
    told: list[str] = field(default_factory=list)
    worked: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Choose the first holder, the item and the starting number, and say them."""
        self.who, self.item = self.rng.choice(SHE + HE), self.rng.choice(ITEMS)
        self.value = self.rng.randint(4, 60)
        self.say(STARTS, k=self.value)

    def say(self, forms: tuple[str, ...], **numbers: object) -> None:
        """Add one sentence in a randomly chosen wording, with a fresh second person."""
        clear = (self.other in SHE) != (self.who in SHE)  # a pronoun could mean the person named last
        self.other = self.rng.choice([name for name in SHE + HE if name != self.who])
        pronoun = "She" if self.who in SHE else "He"
        they = self.rng.choice((self.who, pronoun)) if clear else self.who
        box = self.rng.choice(BOXES)
        form = self.rng.choice(forms)
        self.told.append(
            form.format(who=self.who, other=self.other, item=self.item, they=they, box=box, **numbers)
        )

    def work(self, label: str, left: int, sign: str, right: int) -> int:
        """Add one worked line and return its result."""
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        self.worked.append(f"{label}: {left} {sign} {right} = {result}")
        return result


def fits(value: int) -> bool:
    """Whether a value may stand in a worked line."""
    return 1 <= value <= LIMIT


def gain(s: Story) -> bool:
    """Some more arrive."""
    k = s.rng.randint(2, 40)
    if not fits(s.value + k):
        return False
    s.say(GAINS, k=k)
    s.value = s.work("more", s.value, "+", k)
    return True


def lose(s: Story) -> bool:
    """Some go away."""
    if s.value < 5:
        return False
    k = s.rng.randint(2, min(s.value - 1, 60))
    s.say(LOSSES, k=k)
    s.value = s.work("less", s.value, "-", k)
    return True


def scale(s: Story) -> bool:
    """The number doubles or triples, for the holder or in comparison with somebody else."""
    k = s.rng.choice((2, 2, 3))
    if not fits(s.value * k):
        return False
    if s.rng.random() < 0.5:
        s.say(TWICE if k == 2 else THRICE)
        s.value = s.work("double" if k == 2 else "triple", s.value, "*", k)
    else:
        s.say(TIMES, word="twice" if k == 2 else "three times")
        _move_to_other(s, "*", k)
    return True


def share(s: Story) -> bool:
    """Half is kept, or one of several equal parts."""
    parts = [k for k in (2, 2, 3, 4, 5) if s.value % k == 0 and s.value >= 2 * k]
    if not parts:
        return False
    k = s.rng.choice(parts)
    if k == 2:
        s.say(HALVES)
        s.value = s.work("half", s.value, "/", 2)
    else:
        s.say(SHARES, k=k)
        s.value = s.work("one part", s.value, "/", k)
    return True


def compare(s: Story) -> bool:
    """Somebody else has more or fewer; the story goes on with that person."""
    k = s.rng.randint(2, 40)
    sign = s.rng.choice("+-")
    if not fits(s.value + k if sign == "+" else s.value - k):
        return False
    s.say(MORE if sign == "+" else FEWER, k=k)
    _move_to_other(s, sign, k)
    return True


def pack(s: Story) -> bool:
    """Several boxes with the same content arrive: two worked lines."""
    n, k = s.rng.randint(2, 5), s.rng.randint(2, 10)
    if not fits(s.value + n * k):
        return False
    s.say(PACKS, n=n, k=k)
    s.value = s.work("more", s.value, "+", s.work("boxes", n, "*", k))
    return True


def _move_to_other(s: Story, sign: str, k: int) -> None:
    s.before, s.who, s.other = s.value, s.other, s.who
    s.value = s.work(s.who, s.value, sign, k)


MOVES: tuple[Callable[[Story], bool], ...] = (gain, gain, lose, lose, scale, share, compare, pack)
