"""The run as a command line and a run file, to copy or to save."""

from pathlib import Path

from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QDialog, QFileDialog, QPlainTextEdit, QPushButton, QVBoxLayout, QWidget

from app import theme
from app.shell import command_line
from app.widgets import ProblemLine, button, label, row
from core import files
from core.config import RunConfig, dump_config
from core.errors import CoreError, describe
from core.runs.folder import safe_name


class CommandDialog(QDialog):
    """Shows what the window would do, for a terminal or another machine."""

    def __init__(self, config: RunConfig, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Command and run file")
        self.resize(640, 560)
        self._text = dump_config(config)
        self._file = f"{safe_name(name) if name.strip(' .-') else 'run'}.toml"
        self.command = QPlainTextEdit(train_command(self._file))
        self.run_file = QPlainTextEdit(self._text)
        for box, words in ((self.command, "Command line"), (self.run_file, "Run file")):
            box.setReadOnly(True)
            box.setFont(theme.font("mono"))
            box.setAccessibleName(words)
        self.command.setFixedHeight(44)
        self.copy_command = button("Copy", lambda: _copy(self.command, self.copy_command), icon="copy")
        self.copy_command.setAccessibleName("Copy command line")
        self.copy_file = button("Copy", lambda: _copy(self.run_file, self.copy_file), icon="copy")
        self.copy_file.setAccessibleName("Copy run file")
        self.save_file = button("Save…", self._save, icon="floppy-disk")
        self.save_file.setAccessibleName("Save run file")
        self.problem = ProblemLine()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(theme.GRID)
        layout.addLayout(row(label("Command line", "section"), None, self.copy_command))
        layout.addWidget(label("Save the run file below, then this line does the same as Start training.", "help"))
        layout.addWidget(self.command)
        layout.addSpacing(theme.GRID)
        layout.addLayout(row(label(f"Run file {self._file}", "section"), None, self.copy_file, self.save_file))
        layout.addWidget(self.run_file, 1)
        layout.addWidget(self.problem)
        close = button("Close", self.accept)
        close.setDefault(True)
        layout.addLayout(row(None, close))

    def _save(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Save the run file", self._file, "Run files (*.toml)")
        if path:
            self.save(Path(path))

    def save(self, path: Path) -> None:
        """Write the run file; where that fails, say why and stay open."""
        try:
            files.write_text(path, self._text)
        except (CoreError, OSError) as error:
            words = describe(error)
            self.problem.set_problem(f"{words.message} {words.hint}".strip())
            return
        self.problem.set_problem("")
        self.command.setPlainText(train_command(str(path)))


def train_command(file: str) -> str:
    """The command that trains a run file."""
    return command_line(["lora-workbench", "train", file])


def _copy(box: QPlainTextEdit, pressed: QPushButton) -> None:
    QGuiApplication.clipboard().setText(box.toPlainText())
    pressed.setText("Copied")
