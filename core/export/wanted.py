"""What an adapter changes in each parameter of the model, and which shared tensors must part for it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.errors import AdapterError
from core.export.keys import ModelKeys
from core.lora.peft_keys import Contents, LoraPair, TokenRows


@dataclass(frozen=True)
class Change:
    """Of one parameter, in this order: `value` takes its place, `pair` is added, `rows` take the place of single
    rows. A value or rows may make it longer."""

    value: Tensor | None = None
    pair: LoraPair | None = None
    rows: TokenRows | None = None

    def __bool__(self) -> bool:
        return self.value is not None or self.pair is not None or self.rows is not None

    @property
    def is_update(self) -> bool:
        """A low-rank update and nothing else."""
        return self.pair is not None and self.value is None and self.rows is None

    def length(self, own: int) -> int:
        """Rows of the changed parameter, which has `own`."""
        longer = own if self.value is None else self.value.shape[0]
        return longer if self.rows is None else max(longer, max(self.rows.indices) + 1)


NOTHING = Change()


def wanted_changes(contents: Contents, keys: ModelKeys, stored: Iterable[str]) -> tuple[dict[str, Change], set[str]]:
    """The changes by parameter, and the parameters whose shared tensor must part.

    Args:
        contents: of the adapter.
        keys: of the base model.
        stored: the parameters that the base's files hold.

    Raises:
        AdapterError: a vocabulary that would grow on one side only.
    """
    changes = {f"{module}.weight": Change(pair=pair) for module, pair in contents.pairs.items()}
    for name, value in contents.parameters.items():
        changes[name] = replace(changes.get(name, NOTHING), value=value)
    for name, value in contents.frozen.items():
        for shared in _group(name, keys):
            known = changes.get(shared, NOTHING)
            changes[shared] = known if known.value is not None else replace(known, value=value)
    own_rows = {f"{module}.weight" for module in contents.rows}
    for module, rows in contents.rows.items():
        for shared in _group(f"{module}.weight", keys):
            if shared == f"{module}.weight" or shared not in own_rows:
                changes[shared] = replace(changes.get(shared, NOTHING), rows=rows)
    untied = _must_part(changes, keys, set(stored))
    _require_one_vocabulary(changes, keys)
    return changes, untied


def _group(name: str, keys: ModelKeys) -> list[str]:
    """`name` and the parameters of the model that share its tensor."""
    return sorted({name} | {shared for shared in keys.tied_group(name) if shared in keys.shapes})


def _must_part(changes: dict[str, Change], keys: ModelKeys, stored: set[str]) -> set[str]:
    untied: set[str] = set()
    for group in {tuple(_group(name, keys)) for name in changes}:
        if len(group) == 1:
            continue
        if all(_same(changes.get(group[0], NOTHING), changes.get(other, NOTHING)) for other in group):
            for other in group:  # one tensor goes on standing for all
                if other not in stored and len(stored & set(group)) > 0:
                    changes.pop(other, None)
        else:
            untied |= {other for other in group if other in changes}
    return untied


def _same(left: Change, right: Change) -> bool:
    """True where both parameters, which share one tensor, are changed alike."""
    values = left.value is right.value or (
        left.value is not None and right.value is not None and torch.equal(left.value, right.value))
    rows = left.rows is right.rows or (
        left.rows is not None and right.rows is not None and left.rows.indices == right.rows.indices
        and torch.equal(left.rows.values, right.rows.values))
    return values and rows and _same_pair(left.pair, right.pair)


def _same_pair(left: LoraPair | None, right: LoraPair | None) -> bool:
    if left is None or right is None:
        return left is right
    if left.scale != right.scale or left.magnitude is not None or right.magnitude is not None:
        return left is right
    if left.embedding == right.embedding:
        return torch.equal(left.lora_a, right.lora_a) and torch.equal(left.lora_b, right.lora_b)
    return torch.equal(left.lora_a, right.lora_b.T) and torch.equal(left.lora_b, right.lora_a.T)


def _require_one_vocabulary(changes: dict[str, Change], keys: ModelKeys) -> None:
    """Embedding and output head must go on having a row for each token."""
    ends = [name for name in keys.vocabulary if name in changes or not any(
        other in changes for other in _group(name, keys))]
    if len({changes.get(name, NOTHING).length(keys.shapes[name][0]) for name in ends}) > 1 \
            and vocabulary_of(changes, keys) is not None:
        raise AdapterError("The adapter makes the vocabulary larger on one side of the model only.",
                           "Train the rows of the output head too, or export the adapter.")


def vocabulary_of(changes: dict[str, Change], keys: ModelKeys) -> int | None:
    """The number of tokens where the changes make it larger; None where it stays."""
    grown = [changes[name].length(keys.shapes[name][0]) for name in changes if name in keys.vocabulary]
    own = [keys.shapes[name][0] for name in changes if name in keys.vocabulary]
    return max(grown) if grown and max(grown) > max(own) else None
