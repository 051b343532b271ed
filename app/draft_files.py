"""Where the draft comes from and how it is kept: the sample, run files, and what was open last time."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QTimer

from app.draft import Draft
from app.settings import Settings
from core.config import load_config
from core.errors import CoreError, describe
from core.events import Failed
from core.paths import SAMPLE, SAMPLE_RUN_FILE


class DraftFiles:
    """Loads the draft and saves it.

    Args:
        draft: what is put together in the window.
        settings: what is remembered.
        failed: tells the person what went wrong.
    """

    def __init__(self, draft: Draft, settings: Settings, failed: Callable[[Failed], None]) -> None:
        self._draft = draft
        self._settings = settings
        self._failed = failed
        self._told_unsaved = False

    def open_last(self) -> None:
        """What the window held when it was closed, or the sample."""
        try:
            config = self._settings.load_draft()
        except (CoreError, OSError) as error:
            config, failed = None, Failed.of(error)
            QTimer.singleShot(0, self._draft, lambda: self._failed(failed))
        if config is not None:
            self._draft.replace(config, self._settings.draft_name)
        elif SAMPLE_RUN_FILE.exists():
            self.open_sample()

    def open_sample(self) -> None:
        """The starter model and the sample dataset with the sample's own settings."""
        self._draft.replace(load_config(SAMPLE_RUN_FILE), SAMPLE.name)

    def open_run_file(self, path: Path) -> None:
        """Take over a run file; a damaged one is told and changes nothing."""
        try:
            config = load_config(path)
        except CoreError as error:
            self._failed(Failed.of(error))
            return
        self._settings.add_recent(str(path))
        self._draft.replace(config, path.parent.name if path.name == "run.toml" else path.stem)

    def keep(self) -> bool:
        """Keep the draft for the next start; False where that fails, once: the second time it is given up."""
        self._settings.draft_name = self._draft.name
        self._settings.sync()
        try:
            self._settings.save_draft(self._draft.config)
        except (CoreError, OSError) as error:
            if not self._told_unsaved:
                self._told_unsaved = True
                words = describe(error)
                self._failed(Failed(f"The settings on these pages can not be kept. {words.message}",
                                    "Close the window again to leave without keeping them.", words.details))
                return False
        return True
