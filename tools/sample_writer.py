"""Puts orders into words: how values are said, how an order is corrected, how the words around are roughened.

The order comes first and the message is made from it, so an answer is right by construction.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from sample_orders import MONTHS, Day, Drawer, Item, Mix, Order
from sample_words import Words

NUMBER_WORDS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
                "thirteen", "fourteen", "fifteen")
SPECIAL_NUMBERS = {2: ("a couple of", "a pair of"), 6: ("half a dozen",), 12: ("a dozen",), 20: ("twenty",),
                   24: ("two dozen",), 30: ("thirty",), 50: ("fifty",)}
# the values stand between these while the words around them are roughened
OPEN, CLOSE = "\x02", "\x03"


@dataclass(frozen=True)
class Row:
    """One example, and what it was made of."""

    message: str
    answer: str
    combination: tuple[object, ...]


@dataclass(frozen=True)
class Texts:
    """An order's slots as the message says them, and the sentence behind that corrects it."""

    items: tuple[str, ...]
    name: str
    city: str
    day: str
    tail: str = ""


Corrected = tuple[Order, Texts]


def guard(value: str) -> str:
    """Mark a value, so that its spelling stays as it is."""
    return f"{OPEN}{value}{CLOSE}" if value else ""


class Speaker:
    """How single values are said."""

    def __init__(self, mix: Mix, stream: random.Random) -> None:
        self.slips = mix.slips
        self.in_words = mix.in_words
        self.random = stream

    def number(self, count: int) -> str:
        """A number on its own, in words or digits, at times with a slip."""
        return guard(self._number(count).removesuffix(" of"))

    def wording(self, wording: str, count: int, old: int, thing: str = "") -> str:
        """Fill {new}, {old} and {things} of a wording that corrects a number."""
        for slot, number in (("new", count), ("old", old)):
            wording = wording.replace(f"{{{slot}}} {{things}}", f"{guard(self._number(number))} {{things}}")
        return wording.format(new=self.number(count), old=self.number(old), things=guard(thing))

    def _number(self, count: int) -> str:
        if count in SPECIAL_NUMBERS and self.random.random() < 0.5:
            return self.random.choice(SPECIAL_NUMBERS[count])
        if count < len(NUMBER_WORDS) and self.random.random() < self.in_words:
            return self.slip(NUMBER_WORDS[count], self.slips)
        return str(count)

    def phrase(self, item: Item) -> str:
        """A number and a thing: "three lemon tarts", "an oak chair", "4x cup", "cup (4)"."""
        if item.style:
            return guard(item.style.format(thing=item.thing, count=item.count))
        if item.count == 1:
            article = "an" if item.thing[0] in "aeiou" else "a"
            return guard(f"{self.random.choice((article, article, article, 'one', '1'))} {item.thing}")
        return guard(f"{self._number(item.count)} {item.thing}")

    def day(self, day: Day) -> str:
        """A weekday, at times short, small or with a slip; a date in one of six ways."""
        if isinstance(day, str):
            word = self.random.choices((day, day.lower(), day[:3]), (60, 25, 15))[0]
            return guard(self.slip(word, self.slips))
        month, number = MONTHS[day[0] - 1], day[1]
        ordinal = f"{number}{'th' if 10 < number < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
        return guard(self.random.choice((f"{number} {month}", f"{month} {number}", f"{month} {ordinal}",
                                         f"the {ordinal} of {month}", f"{ordinal} {month}", f"{number} {month[:3]}")))

    def slip(self, word: str, chance: float) -> str:
        """One slip of the finger behind the second letter of a word of four letters or more."""
        if len(word) < 4 or self.random.random() >= chance:
            return word
        place = self.random.randrange(2, len(word) - 1)
        kind = self.random.choice(("swap", "drop", "double"))
        if kind == "drop" and word != "four":  # "for" would be another word
            return word[:place] + word[place + 1:]
        if kind == "double":
            return word[:place] + word[place] + word[place:]
        return word[:place] + word[place + 1] + word[place] + word[place + 2:]


class Corrector:
    """Changes an order after it was put into words, and says so."""

    def __init__(self, words: Words, drawer: Drawer, speaker: Speaker, mix: Mix) -> None:
        self.words = words
        self.share = mix.corrected
        self.draw = drawer
        self.say = speaker
        self.random = drawer.random
        # one that does not fit the order leaves it as it is
        self._kinds: dict[Callable[[Order, Texts], Corrected], int] = {
            getattr(self, f"_{kind}"): weight for kind, weight in mix.corrections.items()}

    def correct(self, order: Order, texts: Texts) -> Corrected:
        """Change one thing in the given share of the orders."""
        if self.random.random() >= self.share:
            return order, texts
        return self.random.choices(list(self._kinds), list(self._kinds.values()))[0](order, texts)

    def _inline_quantity(self, order: Order, texts: Texts) -> Corrected:
        place = self._several(order)
        if place is None:
            return order, texts
        new = self.draw.count(least=2, unlike=order.items[place].count)
        wording = self.random.choice(self.words.inline_quantity)
        gap = "" if wording[0] in ",." else " "
        items = list(texts.items)
        items[place] += gap + wording.format(new=self.say.number(new))
        return order.with_count(place, new), replace(texts, items=tuple(items))

    def _inline_value(self, order: Order, texts: Texts) -> Corrected:
        slots = [slot for slot in ("name", "city", "day") if getattr(order, slot)]
        if not slots:
            return order, texts
        slot = self.random.choice(slots)
        value, new = self._new_value(order, slot)
        said = self.random.choice(self.words.inline_value).format(old=getattr(texts, slot), new=new)
        return replace(order, **{slot: value}), replace(texts, **{slot: said})

    def _tail_quantity(self, order: Order, texts: Texts) -> Corrected:
        place = self._several(order)
        if place is None:
            return order, texts
        old = order.items[place]
        new = self.draw.count(least=2, unlike=old.count)
        tail = self.say.wording(self.random.choice(self.words.tail_quantity), new, old.count, old.thing)
        return order.with_count(place, new), replace(texts, tail=tail)

    def _tail_single(self, order: Order, texts: Texts) -> Corrected:
        if len(order.items) != 1 or self._several(order) is None:
            return self._tail_quantity(order, texts)
        old = order.items[0].count
        new = self.draw.count(least=2, unlike=old)
        tail = self.say.wording(self.random.choice(self.words.tail_single), new, old)
        return order.with_count(0, new), replace(texts, tail=tail)

    def _several(self, order: Order) -> int | None:
        """A thing of which several are wanted, so that another number leaves its word as it is."""
        places = [place for place, item in enumerate(order.items) if item.count > 1]
        return self.random.choice(places) if places else None

    def _tail_remove(self, order: Order, texts: Texts) -> Corrected:
        if len(order.items) == 1:
            return self._tail_add(order, texts)
        place = self.random.randrange(len(order.items))
        tail = self.random.choice(self.words.tail_remove).format(things=guard(order.items[place].thing))
        return order.with_item(place), replace(texts, tail=tail)

    def _tail_add(self, order: Order, texts: Texts) -> Corrected:
        item = self.draw.item(order.items)
        tail = self.random.choice(self.words.tail_add).format(phrase=self.say.phrase(item))
        return replace(order, items=(*order.items, item)), replace(texts, tail=tail)

    def _tail_swap(self, order: Order, texts: Texts) -> Corrected:
        place = self.random.randrange(len(order.items))
        item = self.draw.item(order.items)
        tail = self.random.choice(self.words.tail_swap).format(
            things=guard(order.items[place].thing), phrase=self.say.phrase(item))
        return order.with_item(place, item), replace(texts, tail=tail)

    def _tail_day(self, order: Order, texts: Texts) -> Corrected:
        return self._tail_value(order, texts, "day", self.words.tail_day)

    def _tail_name(self, order: Order, texts: Texts) -> Corrected:
        return self._tail_value(order, texts, "name", self.words.tail_name)

    def _tail_city(self, order: Order, texts: Texts) -> Corrected:
        return self._tail_value(order, texts, "city", self.words.tail_city)

    def _tail_value(self, order: Order, texts: Texts, slot: str, wordings: tuple[str, ...]) -> Corrected:
        if not getattr(order, slot):
            return order, texts
        value, new = self._new_value(order, slot)
        tail = self.random.choice(wordings).format(old=getattr(texts, slot), new=new)
        return replace(order, **{slot: value}), replace(texts, tail=tail)

    def _new_value(self, order: Order, slot: str) -> tuple[Day, str]:
        draw: Callable[[], Day] = {"name": self.draw.name, "city": self.draw.city, "day": self.draw.day}[slot]
        value = draw()
        while value == getattr(order, slot):
            value = draw()
        return value, self.say.day(value) if slot == "day" else guard(str(value))


class Writer:
    """Writes rows in one half's words, with a random stream of its own.

    Args:
        words: wordings and values.
        mix: how often the hard things come.
        seed: of the random stream.
    """

    def __init__(self, words: Words, mix: Mix, seed: str) -> None:
        self.words = words
        self.random = random.Random(seed)
        self.draw = Drawer(words, mix, self.random)
        self.say = Speaker(mix, self.random)
        self.corrector = Corrector(words, self.draw, self.say, mix)
        self._frames: list[str] = []

    def row(self) -> Row:
        """Draw an order, say it, perhaps correct it, and put it together."""
        frame = self._next_frame()
        order = self.draw.order()
        while not fits(frame, order):
            order = self.draw.order()
        texts = Texts(tuple(self.say.phrase(item) for item in order.items), guard(order.name), guard(order.city),
                      self.say.day(order.day))
        order, texts = self.corrector.correct(order, texts)
        return Row(self._roughened(self._assembled(frame, texts)), order.answer(), order.combination())

    def _next_frame(self) -> str:
        """Every frame once before any comes again."""
        if not self._frames:
            self._frames = self.random.sample(self.words.frames, len(self.words.frames))
        return self._frames.pop()

    def _assembled(self, frame: str, texts: Texts) -> str:
        text = fill(frame, {"items": self._joined(texts.items), "name": texts.name, "city": texts.city,
                            "day": texts.day})
        if texts.tail:
            end = "" if text[-1] in ".?!" else self.random.choice((".", ".", ",", " -"))
            text = f"{text}{end} {texts.tail}"
        if self.random.random() < 0.15:
            text = f"{self.random.choice(self.words.greetings)}{self.random.choice((', ', ', ', ' '))}{text}"
        return text

    def _joined(self, items: tuple[str, ...]) -> str:
        if any("," in item or "-" in item for item in items):  # a corrected one: a comma would not set it apart
            return self.random.choice(("; ", " and ", ", and ")).join(items)
        last = self.random.choices((" and ", ", ", " plus ", " & ", " and also ", " + "), (50, 15, 8, 10, 8, 6))[0]
        return items[0] if len(items) == 1 else last.join([", ".join(items[:-1]), items[-1]])

    def _roughened(self, text: str) -> str:
        """Slips of the finger and lower case, in the words around the values only."""
        if self.random.random() < 0.12:
            text = _around_values(text, str.lower)
        if self.random.random() < 0.25:
            words = sorted(set(re.findall(r"[A-Za-z]{5,}", re.sub(f"{OPEN}.*?{CLOSE}", " ", text))))
            if words:
                word = self.random.choice(words)
                slipped = self.say.slip(word, 1.0)
                text = _around_values(text, lambda part: re.sub(rf"\b{word}\b", slipped, part))
        return text.replace(OPEN, "").replace(CLOSE, "")


def _around_values(text: str, change: Callable[[str], str]) -> str:
    parts = re.split(f"({OPEN}.*?{CLOSE})", text)
    return "".join(part if part.startswith(OPEN) else change(part) for part in parts)


def fits(frame: str, order: Order) -> bool:
    """True where the frame says every field of the order; some parts say two at once or none."""
    slots = {"items": "items", "name": "name" if order.name else "",
             "city": "city" if order.city else "", "day": "day" if order.day else ""}
    filled = fill(frame, {slot: f"{OPEN}{mark}{CLOSE}" if mark else "" for slot, mark in slots.items()})
    return all(f"{OPEN}{mark}{CLOSE}" in filled for mark in slots.values() if mark)


def fill(frame: str, slots: dict[str, str]) -> str:
    """Put the slots into a frame; a part in square brackets goes if one of its slots is empty."""
    while match := re.search(r"\[([^\[\]]*)\]", frame):
        names = re.findall(r"\{(\w+)\}", match[1])
        frame = frame[:match.start()] + (match[1] if all(slots[name] for name in names) else "") + frame[match.end():]
    return frame.format(**slots)
