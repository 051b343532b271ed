"""What fields of the form show although the config does not take it."""

from collections.abc import Iterable

from pydantic import ValidationError

from core.config import RunConfig, field_errors
from core.run_problems import Problem


class Refusals:
    """A sentence for each such field, by its path."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    @property
    def paths(self) -> frozenset[str]:
        """The fields."""
        return frozenset(self._told)

    def problems(self) -> list[Problem]:
        """They keep the run from starting."""
        return [Problem(path, message, "") for path, message in self._told.items()]

    def tell(self, path: str, message: str) -> None:
        """A field's text is no value at all."""
        self._told[path] = message

    def tell_errors(self, config: RunConfig, error: ValidationError) -> None:
        """What the models say of values that were to be put into `config`."""
        self._told.update({path: _sentence(config, path, text) for path, text in field_errors(error)})

    def forget(self, paths: Iterable[str]) -> None:
        """These fields show something else now."""
        for path in paths:
            self._told.pop(path, None)

    def clear(self) -> None:
        """All fields show what the config has."""
        self._told.clear()

    def keep_common(self, before: RunConfig, after: RunConfig) -> None:
        """Another method, or a table left out, has other fields: what was refused in one of the old is gone with it."""
        self.forget([path for path in self._told if _table(before, path) is not _table(after, path)])


def _table(config: RunConfig, path: str) -> type:
    """The kind of table in which a field lies; None's own where the table is left out."""
    return type(getattr(config, path.partition(".")[0], None))


def _sentence(config: RunConfig, path: str, text: str) -> str:
    """`it must be more than 0` of adapter.alpha -> `Alpha must be more than 0.`"""
    section, _, field = path.partition(".")
    info = type(getattr(config, section)).model_fields.get(field)
    title = info.title if info and info.title else field
    text = f"{title} {text.removeprefix('it ')}" if text.startswith("it must") else f"{title}: {text}"
    return text if text.endswith(".") else f"{text}."
