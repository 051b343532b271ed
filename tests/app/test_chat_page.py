"""The Chat page: streaming, stop, errors in place, several turns, examples."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_fakes import FakeClient, make_run
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from app import chat_examples
from app.adapter_menu import run_ingredients
from app.adapter_mixer import AdapterMixer
from app.ingredients import ingredient
from app.operations import Operations
from app.pages.chat import ChatPage
from core import events, files, jobs, records
from core.config import FullConfig
from core.control import Control
from core.errors import Cancelled

MARKUP = "<img src='file:///etc/passwd'><b>bold</b>"


def answers(job: jobs.Job, control: Control) -> Iterator[events.Event]:
    if isinstance(job, jobs.PreviewRows):
        messages = (records.Message("system", "Be short."), records.Message("user", f"Question {MARKUP}"),
                    records.Message("assistant", "Yes.", True))
        yield events.RowsPrepared(1, (records.RowPreview(0, messages, (), False),))
        yield events.Result()
        return
    assert isinstance(job, jobs.Generate)
    yield events.Progress("Loading the model", 0, 0)
    for column in job.conversations:
        for piece in (f"{column} ", "says ", MARKUP):
            yield events.TokenGenerated(column, piece)  # type: ignore[arg-type]
        yield events.GenerationDone(column, 3, 0.5, False)  # type: ignore[arg-type]
    yield events.Result()


class Bench:
    def __init__(self, qtbot: QtBot, root: Path, script=answers) -> None:
        self.qtbot = qtbot
        self.client = FakeClient(script)
        self.operations = Operations(FakeClient(script), self.client)
        self.page = ChatPage(self.operations, lambda: root)
        qtbot.addWidget(self.page)
        self.page.resize(1000, 650)
        self.page.show()
        self.settle()

    def settle(self) -> None:
        self.qtbot.waitUntil(lambda: self.operations.current("work") is None and not self.page.busy, timeout=5000)

    def ask(self, text: str) -> None:
        self.page.input.setPlainText(text)
        self.qtbot.keyClick(self.page.input, Qt.Key.Key_Return)

    def generated(self) -> list[jobs.Generate]:
        return [job for job in self.client.jobs if isinstance(job, jobs.Generate)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs", "first")
    return tmp_path / "runs"


def test_both_columns_stream_and_hold_a_conversation(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root)
    page = bench.page
    assert page.picker.run is not None and page.picker.run.name == "first"
    page.settings.temperature.setValue(10)
    page.settings.most_tokens.setValue(99)
    bench.ask(f"Hello {MARKUP}")
    assert page.busy and page.stop_button.isVisible() and not page.send_button.isVisible()
    bench.settle()
    assert page.answers.base.answers() == [f"base says {MARKUP}"]
    assert page.answers.tuned.answers() == [f"tuned says {MARKUP}"]
    assert page.answers.tuned.state_text() == "3 tokens · 0.5 s · 6 tok/s · differs from Base in 1 place"
    bench.ask("And now?")
    bench.settle()
    first, second = bench.generated()
    assert first.uses == (jobs.AdapterUse(root / "first" / "adapter"),) and first.model == "/models/SmolLM2"
    assert (first.temperature, first.max_new_tokens) == (0.5, 99)
    system = ("system", "Be short.")  # proposed from the run's own rows
    assert first.conversations["base"] == (system, ("user", f"Hello {MARKUP}"))
    assert second.conversations["tuned"] == (system, ("user", f"Hello {MARKUP}"),
                                             ("assistant", f"tuned says {MARKUP}"), ("user", "And now?"))
    assert second.seed != first.seed


def test_shift_enter_is_a_new_line(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root)
    bench.page.input.setPlainText("one")
    before = bench.page.input.height()
    bench.page.input.moveCursor(bench.page.input.textCursor().MoveOperation.End)
    qtbot.keyClick(bench.page.input, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    assert bench.page.input.toPlainText() == "one\n" and not bench.page.busy
    assert bench.page.input.height() > before
    bench.page.input.setPlainText("  ")
    qtbot.keyClick(bench.page.input, Qt.Key.Key_Return)
    assert not bench.generated()


def test_stop_keeps_what_was_said(qtbot: QtBot, root: Path) -> None:
    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        if isinstance(job, jobs.PreviewRows):
            yield events.Result()
            return
        yield events.TokenGenerated("base", "Once")
        while not control.stop_requested:
            time.sleep(0.005)
        yield events.GenerationDone("base", 1, 0.1, True)
        yield events.GenerationDone("tuned", 0, 0.0, True)
        yield events.Result()

    bench = Bench(qtbot, root, script)
    bench.ask("Tell me a story")
    qtbot.waitUntil(lambda: bench.page.answers.base.shown_text() == "Once", timeout=3000)
    bench.page.stop_button.click()
    bench.settle()
    assert bench.page.answers.base.answers() == ["Once"] and "cut off" in bench.page.answers.base.state_text()
    assert bench.page.answers.tuned.answers() == [] and bench.page.answers.tuned.state_text() == "Stopped."
    assert bench.page.answers.tuned.conversation == []


def test_stop_while_the_model_is_loaded(qtbot: QtBot, root: Path) -> None:
    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        if isinstance(job, jobs.Generate):
            yield events.Progress("Loading the model", 0, 0)
            while not control.stop_requested:
                time.sleep(0.005)
            raise Cancelled()
        yield events.Result()

    bench = Bench(qtbot, root, script)
    bench.ask("Hello")
    qtbot.waitUntil(lambda: bench.page.answers.base.state_text() == "Loading the model…", timeout=3000)
    bench.page.stop_button.click()
    bench.settle()
    assert bench.page.answers.base.state_text() == "Stopped." and bench.page.answers.base.conversation == []


def test_a_failure_stands_in_place_and_the_question_comes_back(qtbot: QtBot, root: Path) -> None:
    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        if isinstance(job, jobs.Generate):
            yield events.Failed("The model <b>folder</b> is gone.", "Bring it back.")
            return
        yield events.Result()

    bench = Bench(qtbot, root, script)
    told: list[object] = []
    bench.operations.failed.connect(told.append)
    bench.ask("Hello")
    bench.settle()
    assert bench.page.answers.tuned.state_text() == "The model <b>folder</b> is gone. Bring it back."
    assert bench.page.input.toPlainText() == "Hello"
    assert bench.page.answers.base.conversation == [] and not told  # no dialog besides


def test_without_a_run_the_base_answers_alone(qtbot: QtBot, tmp_path: Path) -> None:
    bench = Bench(qtbot, tmp_path / "none")
    page = bench.page
    bench.ask("Hello")
    assert not bench.generated() and "base model" in page.message.text()
    page.set_base("starter")
    assert page.answers.no_adapter.isVisible() and not page.answers.tuned.isVisible()
    with qtbot.waitSignal(page.train_requested):
        page.answers.no_adapter.button.click()
    bench.ask("Hello")
    bench.settle()
    (job,) = bench.generated()
    assert job.uses == () and set(job.conversations) == {"base"} and job.model == "starter"
    assert page.answers.base.answers() == [f"base says {MARKUP}"]


def test_another_checkpoint_begins_anew_with_the_question_ready(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root)
    bench.ask("Hello")
    bench.settle()
    bench.page.picker.checkpoint_box.setCurrentIndex(1)
    assert bench.page.answers.tuned.conversation == [] and bench.page.input.toPlainText() == "Hello"
    bench.page.send()
    bench.settle()
    assert bench.generated()[-1].uses[0].path == root / "first" / "checkpoints" / "step-000010"


def test_clear_and_choose_run(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root)
    bench.ask("Hello")
    bench.settle()
    bench.page.clear_button.click()
    bench.settle()
    assert bench.page.answers.base.empty.isVisible() and bench.page.answers.base.conversation == []
    second = make_run(root, "second")
    bench.page.choose_run(second.path)
    bench.settle()
    assert bench.page.picker.run is not None and bench.page.picker.run.name == "second"


def test_examples_are_clicked_and_plain(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root)
    qtbot.waitUntil(lambda: bool(_chips(bench.page)), timeout=3000)
    (chip,) = _chips(bench.page)
    assert "<b>" not in chip.toolTip()
    chip.click()
    bench.settle()
    assert bench.generated()[0].conversations["base"][-1] == ("user", f"Question {MARKUP}")
    assert not _chips(bench.page)


def test_sample_examples_come_from_the_held_out_rows(qtbot: QtBot, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    sample = tmp_path / "orders"
    sample.mkdir()
    rows = [{"messages": [{"role": "system", "content": "Order to JSON."}, {"role": "user", "content": f"{n} lamps"},
                          {"role": "assistant", "content": "{}"}]} for n in range(9)]
    (sample / "heldout.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.setattr(chat_examples, "SAMPLE", sample)
    monkeypatch.setattr(chat_examples, "SAMPLE_HELD_OUT", sample / "heldout.jsonl")
    make_run(tmp_path / "runs", "sample", data=str(sample / "train.jsonl"))
    bench = Bench(qtbot, tmp_path / "runs")
    assert [chip.text() for chip in _chips(bench.page)] == ["0 lamps", "1 lamps", "2 lamps"]
    assert bench.page.settings.system.text() == "Order to JSON."
    bench.page.settings.system.clear()
    qtbot.keyClicks(bench.page.settings.system, "My own")
    bench.page.clear()
    assert bench.page.settings.system.text() == "My own"


def test_the_sample_that_comes_along_has_examples() -> None:
    if not chat_examples.SAMPLE_HELD_OUT.exists():
        pytest.skip("resources/samples/orders/heldout.jsonl is not there")
    found = chat_examples.sample_examples()
    assert len(found.questions) == 3


def two_answers(base: str, tuned: str) -> Callable[[jobs.Job, Control], Iterator[events.Event]]:
    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        if isinstance(job, jobs.Generate):
            for column, text in (("base", base), ("tuned", tuned)):
                if column in job.conversations:
                    yield events.TokenGenerated(column, text)  # type: ignore[arg-type]
                    yield events.GenerationDone(column, 3, 0.5, False)  # type: ignore[arg-type]
        yield events.Result()

    return script


def test_where_the_answers_differ_is_marked(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root, two_answers("\U0001f355 two plums, please", "\U0001f355 three plums, please!"))
    bench.ask("Hello")
    bench.settle()
    base, tuned = bench.page.answers.base.answered[1], bench.page.answers.tuned.answered[1]
    assert (base.marks, tuned.marks) == (["two"], ["three", "!"])
    assert "differs from Base in 2 places" in bench.page.answers.tuned.state_text()
    bench.page.marks.click()
    assert base.marks == tuned.marks == []
    bench.page.marks.click()
    assert base.marks == ["two"]


def test_quite_another_answer_is_not_full_of_marks(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root, two_answers("Sure! Here is your order.", '{"size":"large"}'))
    bench.ask("Hello")
    bench.settle()
    assert "quite another answer than Base" in bench.page.answers.tuned.state_text()
    assert bench.page.answers.base.answered[1].marks == bench.page.answers.tuned.answered[1].marks == []


def test_equal_answers_are_called_so(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root, two_answers("the same", "the same"))
    bench.ask("Hello")
    bench.settle()
    assert "the same as Base" in bench.page.answers.tuned.state_text()
    assert bench.page.answers.base.answered[1].marks == bench.page.answers.tuned.answered[1].marks == []


def test_a_conversation_with_the_base_survives_the_first_run(qtbot: QtBot, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    bench = Bench(qtbot, root)
    bench.page.set_base("starter")
    assert not bench.page.marks.isVisible()
    bench.ask("Hello")
    bench.settle()
    make_run(root, "first")
    bench.page.refresh_runs()
    assert bench.page.picker.run is None and len(bench.page.answers.base.answers()) == 1
    bench.page.clear()
    bench.page.choose_run(root / "first")
    assert bench.page.answers.tuned.isVisible()


def test_answers_are_copied(qtbot: QtBot, root: Path) -> None:
    bench = Bench(qtbot, root)
    bench.ask("Hello")
    bench.settle()
    copy = next(one for one in bench.page.answers.tuned.findChildren(QPushButton) if one.text() == "Copy")
    copy.click()
    assert QGuiApplication.clipboard().text() == f"tuned says {MARKUP}"


def _chips(page: ChatPage) -> list[QPushButton]:
    return [one for one in page.suggestions.findChildren(QPushButton) if one.property("role") == "chip"]


def test_adapters_are_added_weighed_and_taken_away(qtbot: QtBot, root: Path) -> None:
    other = make_run(root, f"second {MARKUP[:1]}").adapter
    bench = Bench(qtbot, root)
    page = bench.page
    page.picker.choose(root / "first")
    page.menu.take(other.parent)
    assert [row.ingredient.path for row in page.mixer.rows] == [root / "first" / "adapter", other]
    assert page.mixer.rows[0].remove_button.isHidden() and not page.mixer.rows[1].remove_button.isHidden()
    page.mixer.rows[0].slider.setValue(70)
    page.mixer.rows[1].box.setValue(-0.5)
    assert page.mixer.rows[0].box.value() == 0.7 and page.mixer.rows[1].slider.value() == -50
    assert page.answers.tuned.name.full_text.startswith("0.7 · first")
    bench.ask("Hello")
    bench.settle()
    assert [use.strength for use in bench.generated()[-1].uses] == [0.7, -0.5]
    page.mixer.rows[1].tick.setChecked(False)
    bench.ask("Again")
    bench.settle()
    assert [use.strength for use in bench.generated()[-1].uses] == [0.7, 0.0]
    page.menu.take(other.parent)
    assert "already" in page.message.text()
    page.menu.take(root)
    assert "holds no adapter" in page.message.text()
    page.mixer.rows[1].remove_button.click()
    assert len(page.mixer.rows) == 1


def test_a_strength_reaches_the_answer_that_is_on_its_way(qtbot: QtBot, root: Path) -> None:
    heard: list[object] = []

    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        if isinstance(job, jobs.Generate):
            yield events.TokenGenerated("tuned", "Once")
            while control.strengths is None or control.strengths.values != (0.25,):
                time.sleep(0.005)
            heard.append(control.strengths.values)
            for column in job.conversations:
                yield events.GenerationDone(column, 1, 0.1, False)  # type: ignore[arg-type]
        yield events.Result()

    bench = Bench(qtbot, root, script)
    bench.ask("Tell me")
    qtbot.waitUntil(lambda: bench.page.answers.tuned.shown_text() == "Once", timeout=3000)
    bench.page.mixer.rows[0].slider.setValue(25)
    bench.settle()
    assert heard == [(0.25,)]


def test_an_adapter_made_elsewhere_is_tried_on_its_base(qtbot: QtBot, root: Path, tmp_path: Path) -> None:
    bench = Bench(qtbot, root)
    bench.page.choose_adapter(tmp_path / "elsewhere", "/models/theirs")
    bench.ask("Hello")
    bench.settle()
    job = bench.generated()[-1]
    assert job.model == "/models/theirs" and job.uses == (jobs.AdapterUse(tmp_path / "elsewhere"),)
    bench.page.picker.choose(root / "first")
    bench.ask("Hello")
    bench.settle()
    assert bench.generated()[-1].model == "/models/SmolLM2" and len(bench.generated()[-1].uses) == 1


def test_a_checkpoint_of_full_fine_tuning_is_a_whole_model(qtbot: QtBot, root: Path) -> None:
    full = make_run(root, "full", adapter=FullConfig())
    bench = Bench(qtbot, root)
    page = bench.page
    for final in (True, False):
        if not final:
            shutil.rmtree(full.model)  # it was interrupted
            page.refresh_runs()
        for checkpoint in ("", "step-000010") if final else ("step-000010",):
            page.picker.choose(full.path, checkpoint)
            row = page.mixer.rows[0]
            assert row.ingredient.whole and row.slider.isHidden() and row.box.isHidden() and not row.tick.isEnabled()
            assert "whole model" in row.note.text() and row.strength == 1.0
            assert not page.add_button.isEnabled() and not page.mix_button.isEnabled()
    assert [one.name for one in run_ingredients(root)] == ["first"]  # there is no adapter of it to add
    page.picker.choose(root / "first")
    assert not page.mixer.rows[0].slider.isHidden() and page.add_button.isEnabled() and page.mix_button.isEnabled()


def test_what_can_not_be_mixed_is_said_before(qtbot: QtBot, root: Path, tmp_path: Path) -> None:
    page = Bench(qtbot, root).page
    files.write_text(tmp_path / "<b>" / "adapter_config.json", '{"bias": "all"}')
    page.menu.take(tmp_path / "<b>")
    assert not page.mix_button.isEnabled() and "&lt;b&gt; can not be mixed: the biases" in page.mix_button.toolTip()
    page.mixer.rows[1].tick.setChecked(False)
    assert page.mix_button.isEnabled() and "one new adapter" in page.mix_button.toolTip()


@pytest.mark.parametrize(("config", "beside", "words", "only"), [
    ({"r": 8, "bias": "none"}, (), "", False),
    ({"r": 8, "bias": "all"}, ("prefix",), "the prefix and the biases", False),
    ({"modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [3]}}, ("bottleneck",),
     "the bottleneck adapters, the modules that are trained whole and the new tokens", False),
    ({"peft_type": "PREFIX_TUNING"}, (), "the prefix", True),
    (None, ("bottleneck",), "the bottleneck adapters", True),
])
def test_what_has_no_strength_is_said(qtbot: QtBot, tmp_path: Path, config: dict[str, object] | None,
                                      beside: tuple[str, ...], words: str, only: bool) -> None:
    if config is not None:
        files.write_text(tmp_path / "a" / "adapter_config.json", json.dumps(config))
    for part, name in (("prefix", "adapter_config.json"), ("bottleneck", "bottleneck_config.json")):
        if part in beside:
            files.write_text(tmp_path / "a" / part / name, "{}")
    mixer = AdapterMixer()
    qtbot.addWidget(mixer)
    mixer.add(ingredient(tmp_path / "a", "a"))
    mixer.show()
    row = mixer.rows[0]
    assert (row.ingredient.beside_words, row.ingredient.only_beside) == (words, only)
    assert row.slider.isVisible() != only and row.box.isVisible() != only and words in row.note.toolTip()
    assert row.note.accessibleDescription() and row.slider.accessibleDescription() == row.note.accessibleDescription()
    row.tick.setChecked(False)
    assert row.strength == 0.0


def test_the_mix_is_saved_as_asked(qtbot: QtBot, root: Path, tmp_path: Path) -> None:
    def script(job: jobs.Job, control: Control) -> Iterator[events.Event]:
        yield events.Result({"path": "/somewhere/mix", "rank": 4, "relative_error": 0.25}
                            if isinstance(job, jobs.MixAdapters) else {})

    bench = Bench(qtbot, root, script)
    bench.page.mixer.rows[0].box.setValue(0.5)
    bench.page.mix_button.click()
    dialog = bench.page.saver.dialog
    assert dialog is not None
    dialog.how.setCurrentIndex(dialog.how.findData("svd"))
    dialog.rank.setValue(4)
    dialog.folder.setText(str(tmp_path))
    assert not dialog.save_button.isEnabled()
    dialog.folder.setText(str(tmp_path / "mix"))
    dialog.save_button.click()
    bench.settle()
    asked = next(job for job in bench.client.jobs if isinstance(job, jobs.MixAdapters))
    assert asked == jobs.MixAdapters((jobs.AdapterUse(root / "first" / "adapter", 0.5),), tmp_path / "mix", "svd", 4)
    assert "25.0%" in bench.page.message.text()
