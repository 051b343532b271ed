"""What is ordered, and the answer that it means. Orders are drawn from one half's values."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sample_words import Words

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LARGER_COUNTS = (13, 14, 15, 18, 20, 24, 30, 36, 40, 50)
Day = str | tuple[int, int]  # a weekday's name, or (month, day of the month)


@dataclass(frozen=True)
class Item:
    """A thing in the singular and how many of it are wanted."""

    thing: str
    count: int

    @property
    def called(self) -> str:
        """The thing in singular or plural, as the number asks for."""
        return self.thing if self.count == 1 else plural(self.thing)


@dataclass(frozen=True)
class Order:
    """What the answer says; empty fields are absent."""

    items: tuple[Item, ...]
    name: str = ""
    city: str = ""
    day: Day = ""
    gift: bool = False

    def answer(self) -> str:
        """The strict JSON: fixed order of keys, absent fields left out, no spaces."""
        values: dict[str, object] = {"items": {item.thing: item.count for item in self.items}}
        if self.name:
            values["name"] = self.name
        if self.city:
            values["city"] = self.city
        if self.day:
            values["day"] = day_key(self.day)
        if self.gift:
            values["gift"] = True
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    def combination(self) -> tuple[object, ...]:
        """What makes a row unlike any other, whatever the numbers: things, name, city and day."""
        return (*sorted(item.thing for item in self.items), self.name, self.city, self.day)

    def with_count(self, place: int, count: int) -> "Order":
        """The same order with another number of one thing."""
        return self.with_item(place, Item(self.items[place].thing, count))

    def with_item(self, place: int, *items: Item) -> "Order":
        """The same order with `items` (none takes it out) in the place of one."""
        return replace(self, items=(*self.items[:place], *items, *self.items[place + 1:]))


def day_key(day: Day) -> str:
    """fri, or 05-21 for the 21st of May."""
    return day[:3].lower() if isinstance(day, str) else f"{day[0]:02d}-{day[1]:02d}"


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

    def __init__(self, words: Words, stream: random.Random) -> None:
        self.words = words
        self.random = stream

    def order(self) -> Order:
        """One to three things; name, city, day and gift each there or not."""
        chance = self.random.random
        items: list[Item] = []
        for _ in range(self.random.choices((1, 2, 3), (45, 38, 17))[0]):
            items.append(self.item(items))
        return Order(
            items=tuple(items),
            name=self.name() if chance() < 0.6 else "",
            city=self.city() if chance() < 0.55 else "",
            day=self.day() if chance() < 0.6 else "",
            gift=chance() < 0.13,
        )

    def item(self, others: Sequence[Item]) -> Item:
        """An item whose last word tells it from the others ("the cups" must mean one thing only)."""
        thing = self._thing()
        while any(thing.split()[-1] == other.thing.split()[-1] for other in others):
            thing = self._thing()
        return Item(thing, self.count())

    def _thing(self) -> str:
        pick, words, kind = self.random.choice, self.words, self.random.random()
        if kind < 0.15:
            return f"{pick(words.containers)} of {pick(words.contents)}"
        return pick(words.nouns) if kind < 0.4 else f"{pick(words.adjectives)} {pick(words.nouns)}"

    def count(self, least: int = 1, unlike: int = 0) -> int:
        """Mostly 1 to 12."""
        count = unlike
        while count == unlike:
            small = self.random.random() < 0.75
            count = self.random.randint(least, 12) if small else self.random.choice(LARGER_COUNTS)
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
