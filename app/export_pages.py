"""The first three pages of the export wizard: what, where to, details."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from PySide6.QtCore import QSignalBlocker, Slot
from PySide6.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QLineEdit,
    QVBoxLayout,
    QWizard,
    QWizardPage,
)

from app import figures, theme
from app.export_card import TargetCard
from app.export_choice import ExportDtype, ExportForm, Target, folder_problem
from app.export_state import ExportState
from app.loader_table import LoaderTable
from app.merge_choice import MergeChoice, is_quantised
from app.method_choice import method_words
from app.run_picker import RunPicker
from app.widgets import ProblemLine, button, label, row
from core import files
from core.words import size

_SHARDS = (("As in the base model", 0), ("1 GB", 10**9), ("2 GB", 2 * 10**9), ("5 GB", 5 * 10**9))


class ExportPage(QWizardPage):
    """A page over the state that all pages share."""

    def __init__(self, state: ExportState, title: str, subtitle: str) -> None:
        super().__init__()
        self.state = state
        self.setTitle(title)
        self.setSubTitle(subtitle)


class WhatPage(ExportPage):
    """1: the run and its checkpoint."""

    def __init__(self, state: ExportState) -> None:
        super().__init__(state, "1 of 5 · What", "Choose the run and which of its adapters you want.")
        self.picker = RunPicker()
        self.picker.changed.connect(self._picked)
        self._facts = label("", "help", wrap=True)
        self._problem = ProblemLine()
        layout = QVBoxLayout(self)
        layout.setSpacing(2 * theme.GRID)
        layout.addLayout(row(self.picker, None))
        layout.addWidget(self._facts)
        layout.addWidget(self._problem)
        layout.addStretch(1)

    def initializePage(self) -> None:  # noqa: N802 -- Qt's name
        """Say what is chosen."""
        self._picked()

    def show_problem(self, text: str) -> None:
        """Say why nothing can be chosen."""
        self._problem.set_problem(text)

    @Slot()
    def _picked(self) -> None:
        if self.state.choice.base:  # made elsewhere: there is nothing to pick
            self._say_elsewhere()
            return
        run, adapter = self.picker.run, self.picker.adapter
        if run is not None and adapter is not None:
            self._problem.set_problem(self.state.choose_run(run.path, adapter.checkpoint, adapter.path))
        else:
            self.state.forget_run()
            self._problem.set_problem(
                "This run has no adapter. Choose another one." if self.picker.run_box.count()
                else self._problem.text or "There is no run with an adapter yet. Train one first.")
        facts = self.state.facts
        self._facts.setText("" if facts is None else
                            f"Base model {Path(facts.config.model.path).name} · {method_words(facts.config)}"
                            + ("" if facts.is_whole else f" · adapter {size(facts.adapter_bytes)}"))
        self.completeChanged.emit()

    def _say_elsewhere(self) -> None:
        card = self.state.adapter
        self.picker.hide()
        self._facts.setText("" if card is None else
                            f"The adapter {card.name} ({card.method}, rank {card.rank}) in {card.path}, on the base "
                            f"model {Path(self.state.choice.base).name} · {size(card.bytes)}")
        self.completeChanged.emit()

    def isComplete(self) -> bool:  # noqa: N802
        """A run that can be read is chosen."""
        chosen = bool(self.state.choice.base) or self.picker.adapter is not None
        return chosen and self.state.facts is not None


class WherePage(ExportPage):
    """2: adapter or merged model."""

    def __init__(self, state: ExportState) -> None:
        super().__init__(state, "2 of 5 · Where to", "Choose what you take away.")
        self.cards: dict[Target, TargetCard] = {
            "adapter": TargetCard("Adapter", "The small difference alone, for programs that know the base model and "
                                             "load adapters in PEFT layout."),
            "merged": TargetCard("Merged model", "A whole model with the difference worked in, for every program that "
                                                 "loads Hugging Face models."),
        }
        self._group = QButtonGroup(self)
        for card in self.cards.values():
            self._group.addButton(card.radio)
            card.radio.toggled.connect(self._toggled)
        layout = QVBoxLayout(self)
        layout.addLayout(row(*self.cards.values(), spacing=theme.CARD_GAP))
        layout.addStretch(1)
        state.facts_changed.connect(self.show_costs)

    def initializePage(self) -> None:  # noqa: N802
        """Tick what was chosen before and say what it costs."""
        facts = self.state.facts
        self.cards["adapter"].setVisible(facts is None or not facts.is_whole)  # there is none after full fine-tuning
        self.cards["merged"].set_reason(facts.unmergeable if facts is not None else "")
        self.cards[self.state.choice.to].radio.setChecked(True)
        self.show_costs()

    @Slot()
    def show_costs(self) -> None:
        """Size and time of both; the base model may still be looked at."""
        facts = self.state.facts
        for target, card in self.cards.items():
            choice = replace(self.state.choice, to=target, dtype="base")
            needed = facts.bytes_of(choice) if facts else 0
            seconds = facts.seconds_of(choice) if facts else 0.0
            words = [f"about {size(needed)}" if needed else "", f"{figures.time_left(seconds)}" if seconds else ""]
            reason = facts.unmergeable if facts is not None and target == "merged" else ""
            card.cost.setText(reason or " · ".join(word for word in words if word) or self.state.card_problem
                              or "Looking at the base model…")
            theme.set_role(card, "card-chosen" if target == self.state.choice.to else "card")

    @Slot()
    def _toggled(self) -> None:
        for target, card in self.cards.items():
            if card.radio.isChecked():
                self.state.choose_target(target)
        self.show_costs()


class DetailsPage(ExportPage):
    """3: number type, size of the files, folder."""

    def __init__(self, state: ExportState) -> None:
        super().__init__(state, "3 of 5 · Details", "How and where the files are written.")
        self.dtype = QComboBox()
        self.dtype.setAccessibleName("Number type")
        self.dtype_help = label("", "help", wrap=True)
        self.shards = QComboBox()
        self.shards.setAccessibleName("Largest file")
        for words, size_bytes in _SHARDS:
            self.shards.addItem(words, size_bytes)
        self.form = QComboBox()
        self.form.setAccessibleName("Form")
        self.form.addItem("As it was trained (PEFT)", "peft")
        self.form.addItem("Compatible: the same effect, written so that every loader reads it", "compatible")
        self.loaders = LoaderTable()
        self.folder = QLineEdit()
        self.folder.setAccessibleName("Folder")
        self.folder.setMinimumWidth(360)
        self.browse = button("Choose…", self._browse, icon="folder-open")
        self.space = label("", "help")
        self.problem = ProblemLine()
        self._form = QFormLayout(self)
        self._form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapAllRows)
        self._form.setVerticalSpacing(6)
        self._form.addRow(label("Form"), self.form)
        self._form.addRow(self.loaders)
        self.merge = MergeChoice()
        self.merge.changed.connect(self._take)
        self._form.addRow(label("Merge into"), self.merge)
        self._form.addRow(label("Number type"), self.dtype)
        self._form.addRow(self.dtype_help)
        self._form.addRow(label("Largest file"), self.shards)
        self._form.addRow(label("Folder"), row(self.folder, self.browse))
        self._form.addRow(self.problem)
        self._form.addRow(self.space)
        self.form.currentIndexChanged.connect(self._form_chosen)
        state.facts_changed.connect(self._facts_came)
        self.dtype.currentIndexChanged.connect(self._take)
        self.shards.currentIndexChanged.connect(self._take)
        self.folder.textChanged.connect(self._take)
        self.setButtonText(QWizard.WizardButton.NextButton, "Export")

    def initializePage(self) -> None:  # noqa: N802
        """Offer what fits the target."""
        choice, facts = self.state.choice, self.state.facts
        merged = choice.to == "merged"
        self._fill_types()
        self._form.setRowVisible(self.shards, merged)
        quantised = merged and is_quantised(facts.config if facts else None)
        self._form.setRowVisible(self.merge, quantised)
        self.merge.show_value(choice.merge_into if quantised else "original")
        self._show_form()
        self.dtype_help.setText("fp32 keeps the adapter's effect whole; 16-bit files are half the size and round it, "
                                "by how much stands in the receipt.")
        self.folder.setText(str(self.state.choice.with_default_folder().out))
        self._take()

    def _fill_types(self) -> None:
        """The number types; the first one is what the files come in by themselves."""
        choice, facts = self.state.choice, self.state.facts
        kept = facts.natural_dtype(choice) if facts is not None else ""
        if choice.to == "merged" and not (facts is not None and facts.is_whole):
            same = "As in the base model"
        elif choice.to == "adapter" and choice.form == "compatible":
            same = "As it is computed"
        else:
            same = "As in the adapter" if choice.base else "As in the checkpoint" if choice.checkpoint \
                else "As in the run"
        with QSignalBlocker(self.dtype):
            self.dtype.clear()
            for words, value in ((f"{same} ({kept})" if kept else same, "base"), ("fp32", "fp32"), ("bf16", "bf16"),
                                 ("fp16", "fp16")):
                self.dtype.addItem(words, value)
            self.dtype.setCurrentIndex(max(0, self.dtype.findData(choice.dtype)))

    @Slot()
    def _take(self) -> None:
        out = Path(self.folder.text().strip()).expanduser()
        self.state.choice = replace(self.state.choice, dtype=cast(ExportDtype, self.dtype.currentData() or "base"),
                                   shard_bytes=self.shards.currentData() or 0, out=out, merge_into=self.merge.value)
        needed = self.state.facts.bytes_of(self.state.choice) if self.state.facts else 0
        message, hint = folder_problem(self.folder.text(), needed)
        self.problem.set_problem(f"{message} {hint}".strip())
        self.folder.setProperty("wrong", bool(message))
        self.folder.style().polish(self.folder)
        self.space.setText(self._space_words(out, needed))
        self.completeChanged.emit()

    @Slot()
    def _facts_came(self) -> None:
        """The adapter or the base was looked at: its number type is known, and with it the size."""
        self._fill_types()
        self._show_form()
        if self.folder.text():  # this page has been seen
            self._take()

    @Slot()
    def _show_form(self) -> None:
        """The form that is chosen and who reads it; the adapter may still be looked at."""
        card = self.state.adapter
        shown = self.state.choice.to == "adapter" and card is not None
        self._form.setRowVisible(self.form, shown and bool(card and card.compatible))
        self._form.setRowVisible(self.loaders, shown)
        with QSignalBlocker(self.form):
            self.form.setCurrentIndex(self.form.findData(self.state.choice.form))
        if card is not None:
            self.loaders.show_verdicts(card.loaders if self.state.choice.form == "peft" else card.compatible)
            self.loaders.setVisible(shown)

    @Slot()
    def _form_chosen(self) -> None:
        self.state.choose_form(cast(ExportForm, self.form.currentData()))
        self._facts_came()

    def _space_words(self, out: Path, needed: int) -> str:
        if not out.is_absolute():
            return ""
        try:
            free = files.free_bytes(out)
        except OSError:
            return ""  # said by the problem line
        return f"About {size(needed)} of {size(free)} free." if needed else f"{size(free)} free."

    def _browse(self) -> None:
        start = Path(self.folder.text()).expanduser()
        while not start.is_dir() and start != start.parent:
            start = start.parent
        chosen = QFileDialog.getExistingDirectory(self, "Folder for the export", str(start))
        if chosen:
            path = Path(chosen)
            if any(path.iterdir()):  # a folder in use holds the new one
                path = path / self.state.choice.with_default_folder().out.name
            self.folder.setText(str(path))

    def isComplete(self) -> bool:  # noqa: N802
        """The folder can be used."""
        return self.problem.text == "" and bool(self.folder.text().strip())
