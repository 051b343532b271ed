"""Foreign text is shown as text: no label of these pages reads markup, no tool tip lets it through."""

from collections.abc import Iterator
from pathlib import Path

from page_fakes import FakeClient, make_run, planned, step_done
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QPlainTextEdit, QTextEdit, QWidget
from pytestqt.qtbot import QtBot

from app.export_wizard import ExportWizard
from app.ingredients import Ingredient
from app.operations import Operations
from app.pages.chat import ChatPage
from app.pages.runs import RunsPage
from app.pages.train import TrainPage
from core import events, jobs, records
from core.control import Control

MARKUP = "<img src='file:///x'><h1>big & bold"


def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
    if isinstance(job, jobs.Generate):
        yield events.TokenGenerated("base", MARKUP)
        yield events.Failed(MARKUP, MARKUP, MARKUP)
        return
    if isinstance(job, jobs.PreviewRows):
        yield events.RowsPrepared(1, (records.RowPreview(0, (records.Message("user", MARKUP),), (), False),))
    elif isinstance(job, jobs.InspectModel):
        yield events.Failed(MARKUP, MARKUP)
        return
    yield events.Result()


def check(top: QWidget) -> None:
    for widget in [top, *top.findChildren(QWidget)]:
        if isinstance(widget, QLabel) and widget.text():
            assert widget.textFormat() == Qt.TextFormat.PlainText, widget.text()
        assert not isinstance(widget, QTextEdit) or isinstance(widget, QPlainTextEdit)
        tip = widget.toolTip()
        assert "<h1>" not in tip and "<img" not in tip, tip


def test_no_page_reads_markup(qtbot: QtBot, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    name = "<img src=x><h1>big"  # a folder's name may not hold a slash
    run = make_run(root, name, model=f"/models/{name}", data=f"/data/{name}.jsonl")
    make_run(root, f"{name} 2", rank=4, model=f"/models/{name} 2")
    operations = Operations(FakeClient(script), FakeClient(script))
    train, runs = TrainPage(), RunsPage(lambda: root)
    chat, wizard = ChatPage(operations, lambda: root), ExportWizard(operations, run.path, root=lambda: root)
    for page in (train, runs, chat, wizard):
        qtbot.addWidget(page)
        page.show()
    train.begin(run.path)
    for event in (events.Started("Train", run.path), planned(), step_done(1), events.Warned(MARKUP, MARKUP),
                  events.Note(MARKUP), events.Failed(MARKUP, MARKUP, MARKUP)):
        train.on_event(event)
    train._refresh()
    qtbot.waitUntil(lambda: len(runs.model.runs) == 2, timeout=5000)
    for one in runs.model.runs:
        runs.model.tick(one.folder)
    qtbot.waitUntil(lambda: len(runs.overlay.curves) == 2, timeout=5000)
    qtbot.waitUntil(lambda: operations.current("work") is None, timeout=5000)
    chat.input.setPlainText(MARKUP)
    chat.send()
    qtbot.waitUntil(lambda: not chat.busy, timeout=5000)
    receipt = records.Receipt("merged", Path(MARKUP), MARKUP, False, 1.0, 1e-4, 0.5, 0.1,
                             (records.ReceiptRow(MARKUP, MARKUP, MARKUP, 1.0, 0.5),), MARKUP)
    wizard.receipt_page.view.show_receipt(receipt)
    wizard.next()
    verdicts = (records.LoaderVerdict(MARKUP, "wrongly", MARKUP),)
    wizard.details.loaders.show_verdicts(verdicts)
    chat.mixer.add(Ingredient(Path(MARKUP), MARKUP))
    for page in (train, runs, chat, wizard):
        page.grab()
        check(page)
    assert runs.difference.rows()[0][0] == "Base model"
