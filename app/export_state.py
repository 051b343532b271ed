"""What the pages of the export wizard share: the choice, what is known of it, and what came of the work."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QObject, Signal, Slot

from app.export_choice import ExportChoice, ExportFacts, ExportForm, Target
from app.ingredients import BOTTLENECK, PREFIX, ingredient
from app.operations import Operations
from core import events, records
from core.adapter_folder import adapter_folder_bytes
from core.config import FullConfig, LoraConfig, ModelConfig, QLoraConfig, RunConfig
from core.errors import CoreError, describe
from core.jobs import InspectAdapter, InspectModel
from core.runs.folder import RunFolder


class ExportState(QObject):
    """Changed by the pages in turn; none of them knows the others or the wizard.

    Args:
        operations: runs the jobs.
        choice: what is chosen at first.

    Signals: `facts_changed()` when the base model was looked at.
    """

    facts_changed = Signal()

    def __init__(self, operations: Operations, choice: ExportChoice, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.operations = operations
        self.choice = choice
        self.facts: ExportFacts | None = None
        self.card_problem = ""
        self.adapter: records.AdapterCard | None = None  # how other programs read it; None until it was looked at
        self.receipt: records.Receipt | None = None

    def choose_run(self, run_dir: Path, checkpoint: str, adapter: Path) -> str:
        """Take a run as what is exported. Returns what is wrong with it, "" if nothing."""
        self.choice = replace(self.choice, run_dir=run_dir, checkpoint=checkpoint)
        self.facts = None
        try:
            config = RunFolder(run_dir).config()
            whole = isinstance(config.adapter, FullConfig)
            weights = 0 if whole else adapter_folder_bytes(adapter)
        except CoreError as error:
            return f"{error.message} {error.hint}".strip()
        except OSError as error:
            return describe(error).message
        # a checkpoint holds fp32, whatever the run's last files are saved as
        beside = [words for words, table in ((PREFIX, config.prefix), (BOTTLENECK, config.bottleneck))
                  if table is not None]
        self.facts = ExportFacts(config, weights, stored="fp32" if checkpoint else "", unmergeable=_why_not(beside))
        self._inspect(config.model.path)
        if whole:
            self.adapter = None
            self.choose_target("merged")
        else:
            if beside:
                self.choose_target("adapter")
            self._look_at(adapter)
        return ""

    def choose_elsewhere(self, card: records.AdapterCard, base: str) -> None:
        """Take an adapter that was made elsewhere, on this base model."""
        self.choice = replace(self.choice, run_dir=card.path, checkpoint="", base=base)
        parts = ingredient(card.path, card.name)
        adapter = QLoraConfig(quantisation=card.quantisation) if card.quantisation else LoraConfig()
        self.facts = ExportFacts(RunConfig(model=ModelConfig(path=base), adapter=adapter), card.bytes,
                                 unmergeable=_why_not([words for words in parts.beside
                                                       if words in (PREFIX, BOTTLENECK)]))
        if self.facts.unmergeable:
            self.choose_target("adapter")
        self._inspect(base)
        self._adapter_came(events.AdapterInspected(card))

    def forget_run(self) -> None:
        """No run is chosen."""
        self.facts = None

    def choose_target(self, target: Target) -> None:
        """Adapter or merged; the number type goes back to the natural one."""
        if target != self.choice.to:
            self.choice = replace(self.choice, to=target, dtype="base")

    def choose_form(self, form: ExportForm) -> None:
        """As it is, or for every loader."""
        self.choice = replace(self.choice, form=form)

    def _look_at(self, adapter: Path) -> None:
        """Ask how other programs read the adapter; the form that more of them read right is taken."""
        self.adapter = None
        self.choose_form("peft")  # until it is known
        operation = self.operations.work(InspectAdapter(adapter, base=False), latest="export adapter")
        operation.on(events.AdapterInspected, self._adapter_came).on(events.Failed, self._adapter_unknown).start()

    @Slot(object)
    def _adapter_came(self, event: events.AdapterInspected) -> None:
        self.adapter = event.card
        if self.facts is not None:
            self.facts = replace(self.facts, stored=event.card.dtype,
                                 compatible_parameters=event.card.compatible_parameters)
        self.choose_form(event.card.best_form)
        self.facts_changed.emit()

    @Slot(object)
    def _adapter_unknown(self, _failure: events.Failed) -> None:
        """What it is will be told when the export begins; the plain form is taken until then."""
        self.choose_form("peft")

    def _inspect(self, model: str) -> None:
        """Ask for the base model's size: it tells what a merged model takes."""
        self.card_problem = ""
        operation = self.operations.work(InspectModel(model), latest="export inspect")
        operation.on(events.ModelInspected, self._inspected).on(events.Failed, self._not_inspected).start()

    @Slot(object)
    def _inspected(self, event: events.ModelInspected) -> None:
        if self.facts is not None:
            self.facts = replace(self.facts, card=event.card)
            self.facts_changed.emit()

    @Slot(object)
    def _not_inspected(self, failure: events.Failed) -> None:
        self.card_problem = failure.message
        self.facts_changed.emit()


def _why_not(beside: Sequence[str]) -> str:
    """Why an adapter with these parts beside the layers can not be merged."""
    verb = "is" if tuple(beside) == (PREFIX,) else "are"
    return f"Not possible: {' and '.join(beside)} {verb} no change of the weights." if beside else ""
