"""What the window remembers: its place, theme, recent files. No hyper-parameter lives here.

The run that is being put together is kept beside it as an ordinary run file.
"""

import os
from pathlib import Path

from PySide6.QtCore import QByteArray, QSettings
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QWidget

from app.theme import Scheme
from core import files
from core.config import RunConfig, dump_config, load_config
from core.errors import ConfigError
from core.paths import data_root

RECENT_FILES = 8
OTHER_RUNS = 200
_SCHEMES: dict[str, Scheme] = {"system": "system", "light": "light", "dark": "dark"}


class Settings:
    """Typed access to QSettings; with LORA_WORKBENCH_HOME set they lie in an ini file inside it."""

    def __init__(self) -> None:
        if os.environ.get("LORA_WORKBENCH_HOME"):
            self._store = QSettings(str(data_root() / "window.ini"), QSettings.Format.IniFormat)
        else:
            self._store = QSettings("LoRA Workbench", "LoRA Workbench")

    @property
    def geometry(self) -> QByteArray:
        """What QWidget.saveGeometry gave; empty at first."""
        value = self._store.value("geometry")
        return value if isinstance(value, QByteArray) else QByteArray()

    @geometry.setter
    def geometry(self, value: QByteArray) -> None:
        self._store.setValue("geometry", value)

    @property
    def scheme(self) -> Scheme:
        """The chosen colour scheme."""
        value = self._store.value("scheme")
        return _SCHEMES.get(str(value), "system")

    @scheme.setter
    def scheme(self, value: Scheme) -> None:
        self._store.setValue("scheme", value)

    @property
    def recent(self) -> list[str]:
        """Recently opened data files and run files, newest first."""
        return self._texts("recent")

    def add_recent(self, path: str) -> None:
        """Put a file on top of the recent ones."""
        kept = [item for item in self.recent if item != path]
        self._store.setValue("recent", [path, *kept][:RECENT_FILES])

    @property
    def other_runs(self) -> list[Path]:
        """Run folders outside the usual place that were opened here, newest first."""
        return [Path(item) for item in self._texts("other_runs")]

    def add_other_run(self, path: Path) -> None:
        """Remember a run folder outside the usual place."""
        kept = [item for item in self._texts("other_runs") if item != str(path)]
        self._store.setValue("other_runs", [str(path), *kept][:OTHER_RUNS])

    def _texts(self, key: str) -> list[str]:
        """A list of texts; QSettings gives back one of a single text as that text."""
        value = self._store.value(key)
        items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        return [str(item) for item in items]

    @property
    def draft_name(self) -> str:
        """The name given to the run that is being put together."""
        value = self._store.value("draft_name")
        return value if isinstance(value, str) else ""

    @draft_name.setter
    def draft_name(self, value: str) -> None:
        self._store.setValue("draft_name", value)

    def save_draft(self, config: RunConfig) -> None:
        """Keep the unfinished run for the next start."""
        files.write_text(_draft_path(), dump_config(config))

    def load_draft(self) -> RunConfig | None:
        """The unfinished run of last time; None at the first start.

        Raises:
            ConfigError: it can not be read any more. It is kept under another name, which the hint tells.
        """
        path = _draft_path()
        if not path.exists():
            return None
        try:
            return load_config(path)
        except ConfigError as error:
            kept = files.free_path(path.with_name("draft-unreadable.toml"))
            path.rename(kept)
            raise ConfigError("The unfinished run of last time can not be read; the sample is opened instead.",
                              f"It is kept as {kept}. {error.message}") from error

    def sync(self) -> None:
        """Write what is not on the disk yet."""
        self._store.sync()


def _draft_path() -> Path:
    return data_root() / "draft.toml"


def restore_geometry(window: QWidget, settings: Settings) -> None:
    """Put the window where it was; where that place is on no screen any more, into the middle of the first."""
    if not settings.geometry.isEmpty():
        window.restoreGeometry(settings.geometry)
    center = window.frameGeometry().center()
    if not any(screen.availableGeometry().contains(center) for screen in QGuiApplication.screens()):
        area = QGuiApplication.primaryScreen().availableGeometry()
        window.resize(min(1280, area.width()), min(800, area.height()))
        window.move(area.center() - window.rect().center())
