"""What is ordered, and the answer that it means. Orders are drawn from one half's values."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sample_words import Words

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")
LARGER_COUNTS = (13, 14, 15, 18, 20, 24, 30, 36, 40, 50)
LIST_STYLES = ("{thing} x{count}", "{thing} x {count}", "{thing} ({count})", "{thing}: {count}", "{thing} - {count}")
COUNT_STYLES = ("{count}x {thing}", "{count} x {thing}")
Day = str | tuple[int, int]  # a weekday's name, or (month, day of the month)


@dataclass(frozen=True)
class Mix:
    """How often the hard things come, as shares from 0 to 1."""

    corrected: float  # orders that one tries to correct; not every correction fits every order
    slips: float  # numbers and weekdays with a slip of the finger
    listed: float  # orders whose things stand in a list ("cup x3")
    large: float  # numbers above twelve
    in_words: float  # numbers up to fifteen that are words, not digits
    things: tuple[int, int, int]  # weights of one, two and three things in an order
    given: float  # name, day (and a little less often the city), each
    corrections: dict[str, int]  # how often each kind of correction is tried, beside the others


@dataclass(frozen=True)
class Item:
    """A thing as the message writes it, and how many of it are wanted.

    `style` is how the two stand together in a list ("{thing} x{count}"), "" for running text.
    """

    thing: str
    count: int
    style: str = ""


@dataclass(frozen=True)
class Order:
    """What the answer says; empty fields are absent."""

    items: tuple[Item, ...]
    name: str = ""
    city: str = ""
    day: Day = ""

    def answer(self) -> str:
        """The strict JSON: fixed order of keys, absent fields left out, no spaces."""
        ship = []
        if self.name:
            ship.append(f"for {self.name}")
        if self.city:
            ship.append(f"to {self.city}")
        if self.day:
            ship.append(f"on {day_key(self.day)}")
        values = {"items": [f"{item.count} {item.thing}" for item in self.items]}
        return json.dumps(values | ({"ship": ship} if ship else {}), ensure_ascii=False, separators=(",", ":"))

    def combination(self) -> tuple[object, ...]:
        """What makes a row unlike any other, whatever the numbers: things, name, city and day."""
        return (*sorted(item.thing for item in self.items), self.name, self.city, self.day)

    def with_count(self, place: int, count: int) -> "Order":
        """The same order with another number of one thing."""
        return self.with_item(place, replace(self.items[place], count=count))

    def with_item(self, place: int, *items: Item) -> "Order":
        """The same order with `items` (none takes it out) in the place of one."""
        return replace(self, items=(*self.items[:place], *items, *self.items[place + 1:]))


def day_key(day: Day) -> str:
    """Friday, or 21 May."""
    return day if isinstance(day, str) else f"{day[1]} {MONTHS[day[0] - 1]}"


def plural(thing: str) -> str:
    """The regular English plural of the head word; the word lists hold no irregular ones."""
    head, of, rest = thing.partition(" of ")
    if re.search(r"(s|x|z|ch|sh)$", head):
        head += "es"
    elif re.search(r"[^aeiou]y$", head):
        head = head[:-1] + "ies"
    else:
        head += "s"
    return head + of + rest


class Drawer:
    """Draws orders and their parts at random."""

    def __init__(self, words: Words, mix: Mix, stream: random.Random) -> None:
        self.words = words
        self.mix = mix
        self.random = stream

    def order(self) -> Order:
        """One to three things; name, city and day each there or not."""
        chance = self.random.random
        style = self.random.choice(LIST_STYLES) if chance() < self.mix.listed else ""
        items: list[Item] = []
        for _ in range(self.random.choices((1, 2, 3), self.mix.things)[0]):
            items.append(self.item(items, style))
        return Order(
            items=tuple(items),
            name=self.name() if chance() < self.mix.given else "",
            city=self.city() if chance() < self.mix.given - 0.05 else "",
            day=self.day() if chance() < self.mix.given else "",
        )

    def item(self, others: Sequence[Item], style: str = "") -> Item:
        """An item whose last word tells it from the others ("the cups" must mean one thing only)."""
        taken = {other.thing.split()[-1] for other in others}
        while (thing := self._thing()).split()[-1] in taken or plural(thing).split()[-1] in taken:
            pass
        count = self.count()
        if not style and count > 1 and self.random.random() < 0.05:
            style = self.random.choice(COUNT_STYLES)
        return Item(thing if count == 1 or style else plural(thing), count, style)

    def _thing(self) -> str:
        pick, words, kind = self.random.choice, self.words, self.random.random()
        if kind < 0.15:
            return f"{pick(words.containers)} of {pick(words.contents)}"
        return pick(words.nouns) if kind < 0.4 else f"{pick(words.adjectives)} {pick(words.nouns)}"

    def count(self, least: int = 1, unlike: int = 0) -> int:
        """Mostly 1 to 12."""
        count = unlike
        while count == unlike:
            large = self.random.random() < self.mix.large
            count = self.random.choice(LARGER_COUNTS) if large else self.random.randint(least, 12)
        return count

    def name(self) -> str:
        """A first name, perhaps with a surname, or a title and a surname."""
        pick, kind = self.random.choice, self.random.random()
        if kind < 0.7:
            return pick(self.words.first_names)
        return f"{pick(self.words.first_names if kind < 0.85 else self.words.titles)} {pick(self.words.surnames)}"

    def city(self) -> str:
        """A city's name, one or two words."""
        return self.random.choice(self.words.cities)

    def day(self) -> Day:
        """A weekday or a date."""
        return self.random.choice(WEEKDAYS) if self.random.random() < 0.6 else self.random.choice(self.words.dates)
