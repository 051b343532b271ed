"""The Data page while large data is measured, and what it says of a sample."""

from collections.abc import Iterator
from pathlib import Path

from fake_engine import FakeClient, make_scan
from pytestqt.qtbot import QtBot

from app.draft import Draft
from app.operations import Operations
from app.pages.data import DataPage, part_pills, scan_pills
from app.widgets import Pill
from core import events, jobs
from core.control import Control


def words_of(pills: list[Pill]) -> list[str]:
    return [pill.text for pill in pills]


def test_rows_and_format_are_shown_while_the_data_is_measured(
        operations: Operations, engines: tuple[FakeClient, FakeClient], data_file: Path, qtbot: QtBot) -> None:
    draft = Draft(operations, debounce_ms=1)
    page, seen = DataPage(draft, operations), []
    qtbot.addWidget(page)

    def sliced(job: jobs.ScanData, control: Control) -> Iterator[events.Event]:
        yield make_scan(measured=min(1.0, engines[1].kinds().count("ScanData") / 5))

    engines[1].answers[jobs.ScanData] = sliced
    draft.part_scanned.connect(lambda _part: seen.append((page.browser.of.text(), words_of(page.findChildren(Pill)))))
    draft.set_values({"model.path": "m", "data.train": (str(data_file),)})
    qtbot.waitUntil(lambda: draft.ready and not operations.busy)
    number, pills = seen[-1]  # the first row was asked for after the first slice
    assert number == "of 100" and any("so far" in text for text in pills) and any("%" in text for text in pills)
    assert not any("so far" in text for text in words_of(page.findChildren(Pill)))
    assert engines[1].kinds().count("PreviewRows") == 2  # once at the beginning, once for the number of rows


def test_what_is_estimated_is_said_to_be() -> None:
    exact = " ".join(words_of(scan_pills(make_scan())))
    assert "about" not in exact and "sample" not in exact
    some = words_of(scan_pills(make_scan(sampled=50, rows_cut=20, rows_without_supervision=0)))
    assert some[0].count("about") == 2 and some[1] == "about 20 rows cut off"
    assert some[2] == "every row of the sample has an answer"
    assert words_of(part_pills(make_scan(format="", measured=0.25))) == ["measuring… 25.0%"]
