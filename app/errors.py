"""Errors in the window: one plain sentence, a hint, and a report that can be copied without secrets."""

import faulthandler
import platform
import re
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO

from PySide6.QtCore import QObject, Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QDialog, QPlainTextEdit, QVBoxLayout, QWidget

from app import theme
from app.widgets import IconLabel, button, label, row
from core.events import Failed
from core.paths import logs_root

_PACKAGES = ("lora-workbench", "PySide6-Essentials", "torch", "transformers", "safetensors", "tokenizers")
_SECRETS = re.compile(
    r"\bhf_\w{8,}|\b[0-9a-fA-F]{32,}\b|(?i:(?:token|password|secret|api[_-]?key|authorization)\b[\"']?\s*[=:]\s*)\S+")
_PATHS = re.compile(r"(?:(?<![\w.:/~])/|\b[A-Za-z]:[\\/])(?:[^\s\"'<>|:*?,;()\\/]+[\\/])+")
_KEPT_FOLDERS = 2  # of a path, counted from its end: enough to find the place in the program


class ErrorDialog(QDialog):
    """Tells one failure. `resumable` adds a Resume button; the dialog is accepted by it."""

    def __init__(self, failed: Failed, parent: QWidget | None = None, *, resumable: bool = False) -> None:
        super().__init__(parent)
        self.setWindowTitle("LoRA Workbench")
        self.setMinimumWidth(480)
        self._report = report(failed)
        sentence = label(failed.message, "section", wrap=True, selectable=True)
        hint = label(failed.hint, wrap=True, selectable=True)
        hint.setVisible(bool(failed.hint))
        self._details = QPlainTextEdit(self._report)
        self._details.setReadOnly(True)
        self._details.setFont(theme.font("mono"))
        self._details.setAccessibleName("Report")
        self._details.setMinimumHeight(220)
        self._details.hide()
        self.copy_button = button("Copy report", self._copy, icon="copy")
        self.close_button = button("Close", self.reject)
        self.resume_button = button("Resume", self.accept, role="primary", icon="play")
        self.resume_button.setVisible(resumable)
        icon = IconLabel("warning-circle", 24, "danger_text")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(2 * theme.GRID)
        head = row(icon, sentence, spacing=12)
        head.setAlignment(icon, Qt.AlignmentFlag.AlignTop)
        head.setStretch(1, 1)
        layout.addLayout(head)
        layout.addWidget(hint)
        layout.addWidget(self._details)
        show = button("Show report", self._toggle, role="link")
        layout.addLayout(row(show, None, self.copy_button, self.close_button, self.resume_button))
        (self.resume_button if resumable else self.close_button).setDefault(True)

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self._report)
        self.copy_button.setText("Copied")

    def _toggle(self) -> None:
        self._details.setVisible(self._details.isHidden())
        self.adjustSize()


def report(failed: Failed) -> str:
    """What a developer needs: the words, versions and details, with paths and tokens taken out."""
    versions = "\n".join(f"{name} {_version(name)}" for name in _PACKAGES)
    parts = [failed.message, failed.hint, f"Python {platform.python_version()} on {platform.system()} "
             f"{platform.release()} {platform.machine()}", versions, failed.details]
    return redact("\n\n".join(part for part in parts if part))


def redact(text: str) -> str:
    """`text` without tokens and with folders of paths shortened to their end."""
    text = _SECRETS.sub("<secret>", text)
    text = text.replace(str(Path.home()), "/~") if str(Path.home()) not in ("/", "") else text
    return _PATHS.sub(_short_path, text)


def _short_path(match: re.Match[str]) -> str:
    folders = [part for part in re.split(r"[\\/]", match.group()) if part]
    return "/".join(["…", *folders[-_KEPT_FOLDERS:]][-_KEPT_FOLDERS - 1:]) + "/"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


class ErrorHooks(QObject):
    """Brings exceptions from any thread of the window to `failed` in the window's thread."""

    failed = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._before = (sys.excepthook, threading.excepthook)
        self._crash_log: IO[str] | None = None

    def install(self) -> None:
        """Take over the hooks; a crash of Qt itself is written to the log folder."""
        sys.excepthook = self._exception
        threading.excepthook = lambda given: self._exception(
            given.exc_type, given.exc_value or given.exc_type(), given.exc_traceback)
        logs_root().mkdir(parents=True, exist_ok=True)
        self._crash_log = open(logs_root() / "window-crash.log", "a", encoding="utf-8")  # noqa: SIM115
        faulthandler.enable(self._crash_log)

    def remove(self) -> None:
        """Put back the hooks of before."""
        sys.excepthook, threading.excepthook = self._before
        if self._crash_log is not None:
            faulthandler.disable()
            self._crash_log.close()
            self._crash_log = None

    def _exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._before[0](kind, error, trace)  # the terminal gets it, too
        if not issubclass(kind, KeyboardInterrupt):
            self.failed.emit(Failed.of(error.with_traceback(trace)))  # queued where it comes from another thread
