"""The Chat page: base and tuned model answer the same question side by side."""

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QSize, Qt, Signal, Slot
from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QCheckBox, QHBoxLayout, QVBoxLayout, QWidget

from app import theme
from app.adapter_menu import AdapterMenu, adapter_name
from app.adapter_mixer import AdapterMixer
from app.answer_columns import AnswerColumns
from app.chat_input import ChatInput
from app.chat_settings import ChatSettings
from app.chat_suggestions import Suggestions
from app.ingredients import Ingredient, ingredient
from app.mix_saver import MixSaver
from app.operations import Operations
from app.run_list import runs_with_adapters
from app.run_picker import RunPicker
from app.widgets import button, label, plain_tip, row
from core.config import RunConfig
from core.errors import CoreError, describe
from core.jobs import AdapterUse, Generate
from core.paths import runs_root
from core.runs.folder import RunFolder

_MIX_TIP = "Write what answers now as one new adapter"


class ChatPage(QWidget):
    """Asks the working engine through `operations`.

    Args:
        operations: runs the jobs.
        root: gives the folder of the runs.

    Signals: `train_requested()`: there is no run and the person wants to train one.
    """

    train_requested = Signal()

    def __init__(self, operations: Operations, root: Callable[[], Path] = runs_root,
                 parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._operations, self._root = operations, root
        self._base_model = ""  # of the form, asked where no run is chosen
        self._other_base = ""  # of an adapter made elsewhere that is tried
        self._mixed_on = ""  # the base that the listed adapters belong to
        self._asked: tuple[AdapterUse, ...] = ()  # the adapters of the answer that is on its way
        self._config: RunConfig | None = None  # of the chosen run
        self._last_question = ""
        self.picker = RunPicker(none="Base model only")
        self.picker.changed.connect(self._run_changed)
        self.answers = AnswerColumns(operations)
        self.answers.busy_changed.connect(self._show_busy)
        self.answers.failed.connect(self._give_back_question)
        self.answers.train_requested.connect(self.train_requested)
        self.mixer = AdapterMixer()
        self.mixer.changed.connect(self._strength_changed)
        self.mixer.listed.connect(self._list_changed)
        self.saver = MixSaver(operations, self)
        self.saver.told.connect(self._say)
        self.suggestions = Suggestions(operations)
        self.suggestions.asked.connect(self._ask_example)
        self.suggestions.failed.connect(self._say)
        self._build()
        self.suggestions.system.connect(self.settings.propose_system)
        self._run_changed()

    # --- what the window tells -------------------------------------------------------------

    def set_base(self, model: str) -> None:
        """The base model of the form, which answers where no run is chosen."""
        if model != self._base_model:
            self._base_model = model
            if self.picker.run is None:
                self._run_changed()

    def choose_run(self, path: Path, checkpoint: str = "") -> None:
        """Chat with this run."""
        self.refresh_runs()
        self.picker.choose(path, checkpoint)
        self.input.setFocus()

    def choose_adapter(self, path: Path, model: str) -> None:
        """Chat with an adapter that no run made, on this base model."""
        self.refresh_runs()
        self.picker.choose(Path())  # no run
        self._other_base = model
        self._run_changed()
        self.mixer.add(ingredient(path, adapter_name(path)))
        self.input.setFocus()

    def refresh_runs(self) -> None:
        """Look for runs anew; the newest is chosen where none was."""
        had, before = self.picker.run_box.count() > 1, self.picker.adapter
        try:
            runs = runs_with_adapters(self._root())
        except OSError as error:
            self.message.setText(describe(error).message)
            return
        self.picker.set_runs(runs)
        if runs and not had and not self.answers.base.conversation:  # a conversation with the base is not thrown away
            self.picker.choose(runs[0].path)
        elif before != self.picker.adapter:
            self._run_changed()

    @property
    def busy(self) -> bool:
        """True while an answer is on its way."""
        return self.answers.busy

    # --- how it is built -------------------------------------------------------------------

    def _build(self) -> None:
        layout = QVBoxLayout(self)
        margin = theme.PAGE_MARGIN
        layout.setContentsMargins(margin, theme.CARD_GAP, margin, theme.CARD_GAP)
        layout.setSpacing(12)
        layout.addLayout(self._build_head())
        layout.addLayout(self._build_adapters())
        layout.addWidget(self.answers, 1)
        layout.addWidget(self.suggestions)
        layout.addLayout(self._build_foot())

    def _build_head(self) -> QHBoxLayout:
        self.marks = QCheckBox("Mark differences")
        self.marks.setToolTip(plain_tip("Underlines where the two answers differ."))
        self.marks.setChecked(True)
        self.marks.toggled.connect(self.answers.mark_differences)
        self.clear_button = button("Clear", self.clear, icon="eraser", tip="Begin a new conversation")
        return row(self.picker, None, self.marks, theme.GRID, self.clear_button)

    def _build_adapters(self) -> QHBoxLayout:
        self.add_button = button("Add adapter", icon="plus", tip="Another adapter on the same base: they answer "
                                                                 "together, each with its strength")
        self.menu = AdapterMenu(self.add_button, self._root, self._add_adapter, self._say)
        self.mix_button = button("Save the mix…", lambda: self.saver.ask(self.mixer.active()),
                                 icon="floppy-disk",
                                 tip=_MIX_TIP)
        adapters = row(self.mixer, self.add_button, self.mix_button)
        adapters.setStretch(0, 1)
        adapters.insertStretch(1, 0)  # holds the buttons at the edge while the mixer is hidden
        for made in (self.add_button, self.mix_button):
            adapters.setAlignment(made, Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignRight)
        return adapters

    def _build_foot(self) -> QVBoxLayout:
        self.settings = ChatSettings()
        self.message = label("", "error", wrap=True)
        self.input = ChatInput()
        self.input.submitted.connect(self.send)
        self.send_button = button("Send", self.send, icon="paper-plane-right")
        self.stop_button = button("Stop", self.answers.stop, icon="stop")
        for made in (self.send_button, self.stop_button):
            made.setMinimumWidth(96)
        self.stop_button.hide()
        foot = QVBoxLayout()
        foot.setSpacing(theme.GRID)
        foot.addWidget(self.settings)
        ask = row(self.input, self.send_button, self.stop_button)
        ask.setAlignment(self.send_button, Qt.AlignmentFlag.AlignBottom)
        ask.setAlignment(self.stop_button, Qt.AlignmentFlag.AlignBottom)
        foot.addLayout(ask)
        foot.addWidget(self.message)
        self.message.hide()
        return foot

    # --- asking ----------------------------------------------------------------------------

    @Slot()
    def send(self) -> None:
        """Ask what stands in the input."""
        question = self.input.toPlainText().strip()
        if not question or self.busy:
            return
        if not self._model():
            self._say("Choose a base model on the Model page first.")
            return
        self._say("")
        self._last_question = question
        self.input.clear()
        self.suggestions.clear()
        self.answers.ask(question, self._job)

    def _job(self, said: dict[str, list[tuple[str, str]]], seed: int) -> Generate:
        system = self.settings.system.text().strip()
        before = (("system", system),) if system else ()
        training = self._config.training if self._config else None
        self._asked = self.mixer.uses()
        return Generate(
            self._model(), None, {name: (*before, *conversation) for name, conversation in said.items()},
            temperature=self.settings.temperature_value, max_new_tokens=self.settings.most_tokens.value(),
            seed=seed, dtype=training.dtype if training else "auto",
            device="cpu" if training and training.device == "cpu" else "auto", adapters=self._asked)

    def _model(self) -> str:
        return self._config.model.path if self._config else self._other_base or self._base_model

    def clear(self) -> None:
        """Begin a new conversation."""
        self.answers.clear()
        self._say("")
        self.suggestions.offer(self._config)

    @Slot()
    def _give_back_question(self) -> None:
        if not self.input.toPlainText():
            self.input.setPlainText(self._last_question)  # nothing typed is lost

    @Slot(bool)
    def _show_busy(self, busy: bool) -> None:
        self.send_button.setVisible(not busy)
        self.stop_button.setVisible(busy)
        self.picker.setEnabled(not busy)

    # --- which run -------------------------------------------------------------------------

    @Slot()
    def _run_changed(self) -> None:
        run, adapter = self.picker.run, self.picker.adapter
        self._config = None
        if run is not None:
            self._other_base = ""
            try:
                self._config = RunFolder(run.path).config()
            except CoreError as error:
                self._say(f"{error.message} {error.hint}".strip())
        if self.answers.tuned.conversation:
            self._give_back_question()  # ready to be asked of the other checkpoint
        self.settings.propose_system("")
        self.answers.base.name.set_text(Path(self._model()).name if self._model() else "no base model chosen")
        first = None
        if run is not None and adapter is not None:
            first = ingredient(adapter.path, f"{run.name}, {adapter.title.lower()}", whole=adapter.whole)
        self.mixer.set_first(first, keep_others=self._model() == self._mixed_on and not (first and first.whole))
        self._mixed_on = self._model()
        self.clear()

    # --- which adapters --------------------------------------------------------------------

    def _add_adapter(self, one: Ingredient) -> None:
        self._say("" if self.mixer.add(one) else f"{one.name} is in the list already.")

    @Slot()
    def _list_changed(self) -> None:
        """An adapter came or went; while an answer comes this counts from the next question on."""
        several = bool(self.mixer.rows)
        if several and self.answers.tuned.isHidden() and self.answers.base.conversation and not self.busy:
            self.clear()  # the tuned model has not heard what was said before
        self.answers.show_tuned(several)
        self.marks.setVisible(several)
        self.input.set_addressee("both models" if several else "the base model")
        self.add_button.setEnabled(self.mixer.mixable)
        self._strength_changed()

    @Slot()
    def _strength_changed(self) -> None:
        """What counts has changed: the next token of an answer that comes obeys."""
        self.answers.tuned.name.set_text(self.mixer.words() if self.mixer.rows else "")
        unmixed = self.mixer.unmixed_words()
        self.mix_button.setEnabled(self.mixer.mixable and bool(self.mixer.active()) and not unmixed)
        self.mix_button.setToolTip(plain_tip(unmixed or _MIX_TIP))
        if self.busy and self._asked:
            self.answers.set_strengths(*self.mixer.strengths_of(self._asked))

    @Slot(str)
    def _ask_example(self, question: str) -> None:
        self.input.setPlainText(question)
        self.send()

    @Slot(str, bool)
    def _say(self, text: str, failed: bool = True) -> None:
        self.message.setText(text)
        theme.set_role(self.message, "error" if failed else "help")
        self.message.setVisible(bool(text))

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 -- Qt's name
        """Runs may have come since the page was seen last."""
        super().showEvent(event)
        if not self.busy:
            self.refresh_runs()

    def sizeHint(self) -> QSize:  # noqa: N802
        """A page."""
        return QSize(1000, 640)
