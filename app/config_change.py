"""One step of editing the config, which can be undone."""

import time
import zlib
from typing import Any, Protocol

from PySide6.QtGui import QUndoCommand

from core.config import RunConfig, with_method

MERGE_SECONDS = 1.0  # changes of one field within this time are one step to undo
METHOD = "adapter.method"


class Changeable(Protocol):
    """What a step changes: the draft."""

    def apply(self, config: RunConfig) -> None:
        """Set the config without an undo step."""

    def forget_refused(self) -> None:
        """Take back the marks of fields that were refused."""


def changed_config(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """`config` with fields replaced, checked by the models. Raises pydantic's ValidationError.

    "section.field" is one field; "section" alone is a whole optional table, or None to leave it out.
    """
    plain = config.model_dump()
    if METHOD in values:  # first, as it decides which other fields there are
        plain["adapter"] = with_method(config.adapter, str(values[METHOD]))
    for path, value in values.items():
        section, _, field = path.partition(".")
        if field:
            plain[section][field] = value
        else:
            plain[section] = value
    return type(config).model_validate(plain)


class ConfigChange(QUndoCommand):
    """One step of editing. Typing in one field is one step."""

    def __init__(self, draft: Changeable, before: RunConfig, after: RunConfig, paths: tuple[str, ...]) -> None:
        super().__init__("Change " + ", ".join(path.split(".")[-1].replace("_", " ") for path in paths))
        self._draft = draft
        self._before = before
        self.after = after
        self._paths = paths
        self._time = time.monotonic()

    def id(self) -> int:
        """The same for changes of the same fields, so that Qt offers them for merging."""
        return zlib.crc32("|".join(self._paths).encode()) & 0x7FFFFFFF

    def mergeWith(self, other: QUndoCommand) -> bool:  # noqa: N802
        """Take over a later change of the same fields."""
        if not isinstance(other, ConfigChange) or other._time - self._time > MERGE_SECONDS:
            return False
        self.after = other.after
        self._time = other._time
        self.setObsolete(self.after == self._before)
        return True

    def undo(self) -> None:
        """Back to the config before; what was refused in between is forgotten, too."""
        self._draft.forget_refused()
        self._draft.apply(self._before)

    def redo(self) -> None:
        """The config after."""
        self._draft.apply(self.after)
