"""Jobs wait in line, the newest question counts, failures find their way."""

import threading
from collections.abc import Iterator

import shiboken6
from fake_engine import FakeClient
from PySide6.QtWidgets import QDialog
from pytestqt.qtbot import QtBot

from app.operations import Operations
from core import events, jobs
from core.control import Control


def test_events_arrive_in_order_in_the_window_s_thread(
        operations: Operations, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    engines[1].answers[jobs.Unload] = [events.Note("a"), events.Note("b"), events.Result({"x": 1})]
    seen: list[object] = []
    operation = operations.work(jobs.Unload()).on(events.Note, lambda note: seen.append(note.message))
    operation.on(events.Note, lambda _note: seen.append(threading.current_thread() is threading.main_thread()))
    with qtbot.waitSignal(operation.finished) as caught:
        operation.start()
    assert seen == ["a", True, "b", True] and caught.args[0].values == {"x": 1}


def test_one_job_at_a_time_for_each_engine(
        operations: Operations, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    gate = threading.Event()

    def slow(job: object, control: Control) -> Iterator[events.Event]:
        gate.wait(5)
        yield events.Result({})

    engines[1].answers[jobs.Unload] = slow
    first, second = operations.work(jobs.Unload()).start(), operations.work(jobs.ListModels()).start()
    qtbot.waitUntil(lambda: bool(engines[1].jobs))
    assert first.running and not second.running and operations.busy
    with qtbot.waitSignal(second.ended):
        gate.set()
    assert engines[1].kinds() == ["Unload", "ListModels"]


def test_a_newer_question_silences_the_older(
        operations: Operations, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    gate = threading.Event()

    def slow(job: jobs.PreviewRows, control: Control) -> Iterator[events.Event]:
        gate.wait(5)
        yield events.RowsPrepared(job.first, ())
        yield events.Result({})

    engines[1].answers[jobs.PreviewRows] = slow
    seen: list[int] = []
    asked = [operations.work(jobs.PreviewRows(config=None, first=number), latest="rows")  # type: ignore[arg-type]
             .on(events.RowsPrepared, lambda event: seen.append(event.total_rows)) for number in range(3)]
    for operation in asked:
        operation.start()
    with qtbot.waitSignal(asked[-1].ended):
        gate.set()
    assert seen == [2]


def test_failures_go_to_their_handler_or_to_the_window(
        operations: Operations, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    engines[1].answers[jobs.Unload] = [events.Failed("No.")]
    with qtbot.waitSignal(operations.failed) as caught:
        operations.work(jobs.Unload()).start()
    assert caught.args == [events.Failed("No.")]
    own: list[events.Failed] = []
    with qtbot.assertNotEmitted(operations.failed):
        operation = operations.work(jobs.Unload()).on(events.Failed, own.append)
        with qtbot.waitSignal(operation.ended):
            operation.start()
    assert own == [events.Failed("No.")]


def test_a_crash_of_the_client_is_a_failure_in_words(
        operations: Operations, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    def crash(job: object, control: Control) -> Iterator[events.Event]:
        raise OSError(28, "No space left on device")
        yield

    engines[1].answers[jobs.Unload] = crash
    with qtbot.waitSignal(operations.failed) as caught:
        operations.work(jobs.Unload()).start()
    assert "disk is full" in caught.args[0].message


def test_cancelling_is_no_failure(
        operations: Operations, engines: tuple[FakeClient, FakeClient], qtbot: QtBot) -> None:
    def stoppable(job: object, control: Control) -> Iterator[events.Event]:
        yield events.Progress("work", 1, 2)
        while not control.stop_requested:
            threading.Event().wait(0.01)
        yield events.Failed("Cancelled.", cancelled=True)

    engines[1].answers[jobs.Unload] = stoppable
    operation = operations.work(jobs.Unload())
    waiting = operations.work(jobs.Unload())
    with qtbot.waitSignal(operation.happened):
        operation.start()
    waiting.start()
    with qtbot.assertNotEmitted(operations.failed):
        with qtbot.waitSignal(waiting.cancelled):
            waiting.cancel()
        with qtbot.waitSignal(operation.cancelled):
            operation.cancel()


def test_an_answer_for_a_closed_dialog_is_dropped(operations: Operations, engines: tuple[FakeClient, FakeClient],
                                                  qtbot: QtBot) -> None:
    class Dialog(QDialog):
        def take(self, event: events.ModelInspected) -> None:
            self.setWindowTitle(event.card.name)

    dialog, seen = Dialog(), []
    operation = operations.work(jobs.InspectModel("m")).on(events.ModelInspected, dialog.take)
    operation.on(events.ModelInspected, seen.append)
    shiboken6.delete(dialog)
    with qtbot.waitSignal(operation.finished), qtbot.captureExceptions() as errors:
        operation.start()
    assert len(seen) == 1 and errors == []


def test_an_operation_is_not_deleted_with_what_its_slots_keep_alive(engines: tuple[FakeClient, FakeClient]) -> None:
    """Else it would delete its own parent, and that itself a second time: a crash."""
    operations = Operations(*engines)
    operation = operations.work(jobs.ListModels())
    shiboken6.delete(operations)
    assert shiboken6.isValid(operation)
    operation.deleteLater()
