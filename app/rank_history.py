"""The ranks of every matrix over the steps of a run, for methods that move them. No Qt here."""

import csv
import io
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core import events

Ranks = NDArray[np.int16]

MOST_COLUMNS = 1000  # of a picture; more than a screen shows


@dataclass(frozen=True)
class Block:
    """Rows that belong together: the matrices of one kind ("q_proj"), from the lowest layer up."""

    kind: str
    first: int
    rows: int


class RankHistory:
    """Filled by `RanksChosen`. Rows are matrices, grouped by kind and then by layer."""

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.blocks: list[Block] = []
        self.steps: list[int] = []
        self.budgets: list[int] = []
        self._choices: list[Ranks] = []

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, event: events.RanksChosen) -> None:
        """Take a choice; one at or after its step that is there already (a run that goes on) is forgotten."""
        while self.steps and self.steps[-1] >= event.step:
            del self.steps[-1], self.budgets[-1], self._choices[-1]
        if not self.modules:
            self._arrange(event.ranks)
        self.steps.append(event.step)
        self.budgets.append(event.budget)
        self._choices.append(np.array([event.ranks.get(name, 0) for name in self.modules], dtype=np.int16))

    def _arrange(self, ranks: dict[str, int]) -> None:
        groups: dict[str, list[str]] = {}
        for name in ranks:
            groups.setdefault(place_of(name)[1], []).append(name)
        short = [place.rpartition(".")[2] for place in groups]
        for place, names in groups.items():
            kind = place.rpartition(".")[2]
            if short.count(kind) > 1:  # GPT-2 has attn.c_proj and mlp.c_proj
                kind = ".".join(place.split(".")[-2:])
            self.blocks.append(Block(kind, len(self.modules), len(names)))
            self.modules += sorted(names, key=lambda name: place_of(name)[0])

    @property
    def highest(self) -> int:
        """The highest rank of any matrix at any step."""
        return max((int(choice.max()) for choice in self._choices if len(choice)), default=0)

    def choice_at(self, step: float) -> int:
        """Position of the choice that counts at `step`; -1 before the first."""
        return int(np.searchsorted(self.steps, step, side="right")) - 1

    def ranks_at(self, step: float) -> Ranks:
        """Shape (matrices,): the ranks that count at `step`; empty before the first choice."""
        place = self.choice_at(step)
        return self._choices[place] if place >= 0 else np.empty(0, np.int16)

    def picture(self, last_step: float) -> Ranks:
        """Shape (matrices, columns): the ranks from the first choice to `last_step`, at equal distances."""
        if not self._choices:
            return np.empty((0, 0), np.int16)
        first = self.steps[0]
        columns = int(min(max(last_step - first, 1), MOST_COLUMNS))
        middles = first + (np.arange(columns) + 0.5) * max(last_step - first, 1) / columns
        places = np.searchsorted(self.steps, middles, side="right") - 1
        return np.stack(self._choices, axis=1)[:, places]

    def as_csv(self) -> str:
        """A line for each choice: the step, how many ranks might stay, and the rank of every matrix."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["step", "budget", *self.modules])
        for step, budget, choice in zip(self.steps, self.budgets, self._choices, strict=True):
            table.writerow([step, budget, *choice.tolist()])
        return text.getvalue()


def place_of(module: str) -> tuple[int, str]:
    """The layer of a module and its place there: (3, "self_attn.q_proj"); layer -1 outside the layers."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", module)
    return (int(found[1]), found[2]) if found else (-1, module)
