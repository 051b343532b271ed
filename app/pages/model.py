"""The Model page: what is on this machine, and what is known of the chosen one."""

from pathlib import Path
from typing import Literal

from PySide6.QtCore import Qt, Slot
from PySide6.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QWidget

from app import theme
from app.draft import STARTER, Draft
from app.hub_dialog import HubDialog
from app.job_strip import JobStrip
from app.memory_probe import MemoryProbe
from app.model_card import ModelCardView
from app.model_list import ModelList
from app.operations import Operation, Operations
from app.widgets import Card, ProblemLine, button, column, label, row
from core.config import RunConfig
from core.events import ModelsListed, Progress, Result
from core.jobs import DownloadModel, ImportGguf, Job, ListModels
from core.records import ModelCard

LIST_WIDTH = 340
BUSY = "Another model is on its way. Wait for it, or cancel it."


class ModelPage(QWidget):
    """Chooses `model.path`. Drop a model folder or a GGUF file on it."""

    def __init__(self, draft: Draft, operations: Operations, probe: MemoryProbe) -> None:
        super().__init__()
        self._draft = draft
        self._operations = operations
        self.setAcceptDrops(True)
        self.models = ModelList()
        self.models.chosen.connect(lambda name: draft.set_value("model.path", name))
        self.open_button = button("Open folder…", self.open_folder, icon="folder-open",
                                  tip="A model folder in Hugging Face layout, with safetensors")
        self.gguf_button = button("Import GGUF…", self.open_gguf, icon="file-arrow-down",
                                  tip="A GGUF file is dequantised once into the model library")
        self.hub_button = button("Get from the hub…", self.ask_hub, icon="cloud-arrow-down")
        self.problem = ProblemLine()
        self.notice = label("", "help", wrap=True)
        self.notice.hide()
        self.strip = JobStrip()
        self.view = ModelCardView(probe)
        self._left = self._build_left()
        layout = QHBoxLayout(self)
        margin = theme.PAGE_MARGIN
        layout.setContentsMargins(margin, margin, margin, margin)
        layout.setSpacing(theme.CARD_GAP)
        layout.addWidget(self._left)
        layout.addWidget(self.view, 1)
        draft.config_changed.connect(self._config_changed)
        draft.card_changed.connect(self._card_changed)
        draft.problems_changed.connect(lambda _problems: self._show_problem())
        draft.model_progress.connect(self._preparing)
        draft.checking_changed.connect(lambda _checking: self._show_problem())
        self.refresh()
        self._card_changed(draft.card)

    def _build_left(self) -> Card:
        card = Card()
        card.setFixedWidth(LIST_WIDTH)
        card.body.addWidget(label("Base model", "title"))
        card.body.addWidget(label("What the adapter is trained on. It stays as it is.", "help", wrap=True))
        card.body.addWidget(self.models, 1)
        card.body.addWidget(self.strip)
        card.body.addWidget(self.notice)
        card.body.addWidget(self.problem)
        card.body.addLayout(column(row(self.open_button, self.gguf_button), self.hub_button))
        return card

    def refresh(self) -> None:
        """Ask again which models are on this machine."""
        self._operations.work(ListModels(), latest="models").on(ModelsListed, self._listed).start()

    def show_field(self, path: str) -> bool:
        """Lead to the field of a problem."""
        if not path.startswith("model."):
            return False
        self.models.list.setFocus()
        return True

    def open_folder(self) -> None:
        """Let the person pick a model folder."""
        folder = QFileDialog.getExistingDirectory(self, "Open a model folder")
        if folder:
            self.take(Path(folder))

    def open_gguf(self) -> None:
        """Let the person pick a GGUF file to import."""
        file, _ = QFileDialog.getOpenFileName(self, "Import a GGUF file", "", "GGUF models (*.gguf)")
        if file:
            self.take(Path(file))

    def take(self, path: Path) -> None:
        """Choose a model folder (or a file of one), or import a GGUF file and choose the result."""
        self._tell("")
        folder = path if path.is_dir() else path.parent
        if path.suffix.lower() == ".gguf" and not path.is_dir():
            self._import(ImportGguf(path), f"Importing {path.name}",
                         f"The import of {path.name} was cancelled. Nothing of it is left behind.")
        elif path.is_dir() or (folder / "config.json").is_file():
            self._draft.set_value("model.path", str(folder))
        else:
            self._tell(f"{path.name} is not a model. Choose a folder in Hugging Face layout or a GGUF file.", "error")

    def ask_hub(self) -> None:
        """Ask for a model id and fetch it."""
        self._tell("")
        dialog = HubDialog(self)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.accepted.connect(lambda: self._fetch(dialog.job()))
        dialog.open()

    def _fetch(self, job: DownloadModel) -> None:
        self._import(job, f"Getting {job.repo_id}", f"Getting {job.repo_id} was cancelled. What was fetched so far is "
                                                    "kept: get it again and it goes on from there.")

    def _tell(self, text: str, role: Literal["help", "error"] = "help") -> None:
        """Write a line below the list; "" takes it away."""
        self.notice.setText(text)
        self.notice.setVisible(bool(text))
        theme.set_role(self.notice, role)

    def _import(self, job: Job, caption: str, if_cancelled: str) -> None:
        if self.strip.busy:
            self._tell(BUSY, "error")
            return
        operation: Operation = self._operations.work(job).on(Result, self._imported)
        operation.cancelled.connect(lambda: self._tell(if_cancelled))
        operation.ended.connect(lambda: self._set_busy(False))
        self.strip.follow(operation, caption)
        self._set_busy(True)
        operation.start()

    def _set_busy(self, busy: bool) -> None:
        self.gguf_button.setEnabled(not busy)
        self.hub_button.setEnabled(not busy)

    def _imported(self, result: Result) -> None:
        name = result.values.get("name") or result.values.get("path")
        if name:
            self._draft.set_value("model.path", str(name))
        self.refresh()

    def _listed(self, event: ModelsListed) -> None:
        self.models.show_entries(event.entries, self._draft.config.model.path)

    @Slot(object)
    def _config_changed(self, config: RunConfig) -> None:
        self.models.mark(config.model.path)
        self._show_problem()

    @Slot(object)
    def _card_changed(self, card: ModelCard | None) -> None:
        if card is not None and self._draft.config.model.path == STARTER:
            entry = self.models.entry(STARTER)
            if entry is None or entry.state != "ready":
                self.refresh()  # it was just imported
        self._show_problem()

    @Slot(object)
    def _preparing(self, progress: Progress | None) -> None:
        self.strip.show_progress("Preparing the starter model", progress)

    def _show_problem(self) -> None:
        problems = self._draft.problems_of("model")
        text = f"{problems[0].message} {problems[0].hint}".strip() if problems else ""
        chosen = bool(self._draft.config.model.path)
        self.problem.set_problem(text if chosen else "")
        self.view.show_card(self._draft.card, chosen=chosen, refused=chosen and bool(text))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:  # noqa: N802
        """Accept folders and files of this machine."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()
            theme.set_role(self._left, "card-drop")

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:  # noqa: N802
        """Nothing was dropped."""
        theme.set_role(self._left, "card")

    def dropEvent(self, event: QDropEvent) -> None:  # noqa: N802
        """Take the first thing that was dropped."""
        theme.set_role(self._left, "card")
        for url in event.mimeData().urls():
            if url.isLocalFile():
                self.take(Path(url.toLocalFile()))
                event.acceptProposedAction()
                return
