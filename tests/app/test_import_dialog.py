"""Looking at an adapter made elsewhere: what is told, what is offered, what is refused."""

from collections.abc import Iterator
from pathlib import Path

from page_fakes import FakeClient
from PySide6.QtCore import QMimeData, QUrl
from PySide6.QtWidgets import QLabel
from pytestqt.qtbot import QtBot

from app.folder_drop import folder_in
from app.import_dialog import ImportDialog
from app.operations import Operations
from core import events, jobs, records
from core.config import BottleneckConfig, LoraConfig, PrefixConfig, RunConfig
from core.control import Control
from core.start import going_on_from

MARKUP = "<b>bold</b>"
SETTINGS = {"adapter": {"method": "lora", "rank": 4, "alpha": 8.0, "target_modules": ["q_proj"], "start_from": "/a"},
            "prefix": {"length": 6}, "bottleneck": None}
CARD = records.AdapterCard(
    Path("/a"), f"adapter {MARKUP}", "LoRA", 8, 1_000_000, 4_000_000, "fp32", f"theirs {MARKUP}", "SmolLM2",
    (records.BaseMatch("SmolLM2", Path("/m"), "same"), records.BaseMatch("Other", Path("/o"), "fits")),
    (records.AdaptedModule("model.layers.0.q_proj", 4, 2.0, 0.1, 0.02),
     records.AdaptedModule("model.layers.1.q_proj", 8, 2.0, 0.1, 0.04)),
    (records.LoaderVerdict("peft", "exactly", "Fine."),), settings=SETTINGS, origin="Made with another program.")


def open_dialog(qtbot: QtBot, *answer: events.Event) -> ImportDialog:
    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        assert isinstance(job, jobs.InspectAdapter)
        yield from answer
        if not isinstance(answer[-1], events.Failed):
            yield events.Result()

    client = FakeClient(script)
    operations = Operations(FakeClient(script), client)
    dialog = ImportDialog(operations, Path("/a"))
    qtbot.addWidget(dialog)
    dialog.show()
    qtbot.waitUntil(lambda: operations.current("work") is None, timeout=5000)
    return dialog


def words(dialog: ImportDialog) -> str:
    return "\n".join(label.text() for label in dialog.findChildren(QLabel))


def test_facts_bases_and_readers_are_told(qtbot: QtBot) -> None:
    dialog = open_dialog(qtbot, events.AdapterInspected(CARD))
    told = words(dialog)
    assert f"adapter {MARKUP}" in told and "Made with another program." in told
    assert "q_proj: 2 modules, rank 4 to 8, changes the weights by 3.0%" in told
    assert dialog.bases.itemText(0) == "SmolLM2 (the one it was trained on)"
    assert dialog.loaders.lines == ["peft reads it exactly. Fine."]
    dialog.bases.setCurrentIndex(1)
    with qtbot.waitSignal(dialog.chat_requested) as asked:
        dialog.chat_button.click()
    assert asked.args == [Path("/a"), "/o"] and not dialog.isVisible()


def test_without_a_base_here_nothing_is_offered(qtbot: QtBot) -> None:
    from dataclasses import replace

    dialog = open_dialog(qtbot, events.AdapterInspected(replace(CARD, bases=(), settings={}, unlike="it is IA3")))
    assert "No model on this machine fits it." in dialog.problem.text
    assert not any(made.isEnabled() for made in (dialog.chat_button, dialog.train_button, dialog.export_button))
    assert "IA3" in dialog.train_button.toolTip()


def test_no_line_about_a_loader_is_cut_off(qtbot: QtBot) -> None:
    from dataclasses import replace

    why = "It reads the adapter of the layers and does not see a prefix and bottleneck adapters in the sub-folders."
    loaders = tuple(records.LoaderVerdict(name, "wrongly", why) for name in ("peft", "vLLM", "llama.cpp"))
    dialog = open_dialog(qtbot, events.AdapterInspected(replace(CARD, loaders=loaders)))
    dialog.show()
    qtbot.waitExposed(dialog)
    lines = dialog.loaders.findChildren(QLabel)
    qtbot.waitUntil(lambda: all(line.height() >= line.heightForWidth(line.width()) for line in lines))
    assert sum(line.text() == why and line.heightForWidth(line.width()) > line.fontMetrics().height()
               for line in lines) == len(loaders)


def test_a_damaged_one_is_refused_in_words(qtbot: QtBot) -> None:
    dialog = open_dialog(qtbot, events.Failed("It holds numbers that are not finite in layers.0.", "Fetch it again."))
    assert "layers.0" in dialog.problem.text and not dialog.chat_button.isEnabled()


def test_only_one_local_folder_can_be_dropped(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    data = QMimeData()
    for urls, expected in (([tmp_path], tmp_path), ([tmp_path / "file"], None), ([tmp_path, tmp_path], None)):
        data.setUrls([QUrl.fromLocalFile(str(path)) for path in urls])
        assert folder_in(data) == expected


def test_a_run_goes_on_with_the_settings_of_the_adapter() -> None:
    config = going_on_from(RunConfig(bottleneck=BottleneckConfig()), SETTINGS, "/m")
    assert config.prefix == PrefixConfig(length=6)
    assert config.bottleneck is None
    assert config.model.path == "/m"
    assert isinstance(config.adapter, LoraConfig)
    assert (config.adapter.rank, config.adapter.start_from) == (4, "/a")
