"""The run on other machines: the torchrun command, and files for SkyPilot and Slurm."""

from pathlib import Path

from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QComboBox,
    QDialog,
    QFileDialog,
    QGridLayout,
    QPlainTextEdit,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from app import theme
from app.shell import command_line
from app.widgets import ProblemLine, button, label, row, spin_margin
from core import files
from core.cluster import RUN_FILE, Machines, torchrun_command, write_cluster_files
from core.config import RunConfig
from core.errors import CoreError, describe
from core.runs.folder import safe_name

_MOST = 1024
_GPUS = ("A100", "A100-80GB", "H100", "H200", "L4", "L40S", "T4", "V100")


class ClusterDialog(QDialog):
    """Asks for how many machines there are, and writes what they need."""

    def __init__(self, config: RunConfig, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Run elsewhere")
        self.resize(620, 420)
        self._config = config
        self._name = safe_name(name) if name.strip(" .-") else "run"
        self.nodes, self.gpus, self.gpu = _count(Machines.nodes), _count(Machines.gpus), QComboBox()
        self.gpu.setEditable(True)
        self.gpu.addItems(_GPUS)
        self.command = QPlainTextEdit()
        self.command.setReadOnly(True)
        self.command.setFont(theme.font("mono"))
        self.command.setAccessibleName("Command line")
        self.command.setFixedHeight(44)
        self.gpus.valueChanged.connect(self._show_command)
        self.copy = button("Copy", self._copy, icon="copy")
        self.copy.setAccessibleName("Copy command line")
        self.problem, self.written = ProblemLine(), label("", wrap=True, selectable=True)
        self.write_button = button("Write files…", self._choose, role="primary", icon="floppy-disk")
        self._build()
        self._show_command()

    def _build(self) -> None:
        grid = QGridLayout()
        grid.setHorizontalSpacing(2 * theme.GRID)
        grid.setVerticalSpacing(theme.GRID)
        fields = (("Machines", self.nodes), ("GPUs of each", self.gpus), ("Kind of GPU", self.gpu))
        for number, (words, field) in enumerate(fields):
            field.setAccessibleName(words)
            grid.addWidget(label(words), 0, number)
            grid.addWidget(field, 1, number)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(*[theme.PAGE_MARGIN] * 4)
        layout.setSpacing(theme.GRID)
        layout.addLayout(grid)
        layout.addSpacing(theme.GRID)
        layout.addWidget(label("In the cloud or on a cluster", "section"))
        layout.addWidget(label("Writes the run file, a SkyPilot task (task.yaml) and a Slurm script (job.sbatch) into "
                               "a new folder. The rows of each step are shared out over all GPUs.", "help", wrap=True))
        layout.addWidget(self.written)
        layout.addWidget(self.problem)
        layout.addLayout(row(self.write_button, None))
        layout.addSpacing(theme.GRID)
        layout.addLayout(row(label("On one machine with several GPUs", "section"), None, self.copy))
        layout.addWidget(self.command)
        layout.addStretch(1)
        layout.addLayout(row(None, button("Close", self.accept)))

    def _show_command(self) -> None:
        self.command.setPlainText(command_line(torchrun_command(RUN_FILE, self.gpus.value())))
        self.copy.setText("Copy")

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.command.toPlainText())
        self.copy.setText("Copied")

    def _choose(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Where to put the new folder")
        if folder:
            self.write(Path(folder))

    def write(self, parent: Path) -> None:
        """Write the files into a new folder below `parent`; where that fails, say why and stay open."""
        try:
            out = files.free_path(parent / self._name)
            machines = Machines(self.nodes.value(), self.gpus.value(), self.gpu.currentText())
            write_cluster_files(self._config, self._name, machines, out)
        except (CoreError, OSError) as error:
            words = describe(error)
            self.problem.set_problem(f"{words.message} {words.hint}".strip())
            self.written.setText("")
            return
        self.problem.set_problem("")
        self.written.setText(f"Written to {out}\nThere: sky launch task.yaml, or sbatch job.sbatch.")


def _count(value: int) -> QSpinBox:
    box = QSpinBox()
    box.setRange(1, _MOST)
    box.setValue(value)
    spin_margin(box)
    return box
