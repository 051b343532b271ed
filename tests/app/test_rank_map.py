"""The heat map of ranks: rows by kind and layer, columns by step, read-out, colours, saving, only where ranks move."""

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from page_fakes import planned, step_done
from PySide6.QtCore import QEvent, QPointF, Qt
from PySide6.QtGui import QImage, QKeyEvent
from PySide6.QtWidgets import QFileDialog, QToolTip
from pytestqt.qtbot import QtBot

from app.pages.train import TrainPage
from app.rank_history import MOST_COLUMNS, Block, RankHistory, place_of
from app.rank_map import RankPlot, rank_colors
from app.run_record import RunRecord
from app.series import Series
from app.theme import Theme
from core import events

NAMES = [f"model.layers.{layer}.{kind}" for layer in (0, 1, 10) for kind in ("self_attn.q_proj", "mlp.up_proj")]


def chosen(step: int, *ranks: int) -> events.RanksChosen:
    """Ranks of the matrices in the model's order: layer by layer, q_proj and up_proj."""
    return events.RanksChosen(step, dict(zip(NAMES, ranks, strict=True)), sum(ranks))


LOG = [chosen(0, 6, 6, 6, 6, 6, 6), chosen(20, 1, 6, 2, 6, 3, 6), chosen(30, 0, 6, 2, 6, 4, 5)]


@pytest.fixture
def history() -> RankHistory:
    made = RankHistory()
    for event in LOG:
        made.add(event)
    return made


@pytest.fixture
def page(qtbot: QtBot, themed: Theme) -> TrainPage:
    made = TrainPage()
    qtbot.addWidget(made)
    made.resize(1000, 700)
    made.show()
    made.begin(Path("/runs/one"))
    for event in (events.Started("Train", Path("/runs/one"), time.time(), 1), planned()):
        made.on_event(event)
    return made


def show_ranks(page: TrainPage) -> RankPlot:
    for event in (*LOG, *(step_done(step) for step in range(1, 41))):
        page.on_event(event)
    page._refresh()
    page.plots.changed()
    page.plots.group.redraw()
    page.plots.views.setCurrentIndex(1)
    return page.plots.ranks.plot


def painted(plot: RankPlot) -> np.ndarray:
    """Shape (matrices, columns, 4)."""
    image = plot.image.image
    assert image is not None
    return image


def test_rows_are_grouped_by_kind_and_ordered_by_layer(history: RankHistory) -> None:
    assert history.modules == [f"model.layers.{layer}.{kind}" for kind in ("self_attn.q_proj", "mlp.up_proj")
                               for layer in (0, 1, 10)]
    assert history.blocks == [Block("q_proj", 0, 3), Block("up_proj", 3, 3)]
    assert place_of("lm_head") == (-1, "lm_head")


def test_kinds_of_one_name_are_told_apart() -> None:
    history = RankHistory()
    history.add(events.RanksChosen(0, {"transformer.h.0.attn.c_proj": 1, "transformer.h.0.mlp.c_proj": 1}, 2))
    assert [block.kind for block in history.blocks] == ["attn.c_proj", "mlp.c_proj"]


def test_a_choice_counts_until_the_next(history: RankHistory) -> None:
    assert history.highest == 6
    assert history.ranks_at(19.9).tolist() == [6] * 6 and history.ranks_at(29).tolist() == [1, 2, 3, 6, 6, 6]
    assert history.ranks_at(1e9).tolist() == [0, 2, 4, 6, 6, 5] and len(history.ranks_at(-1)) == 0
    picture = history.picture(40)
    assert picture.shape == (6, 40)
    assert picture[0].tolist() == [6] * 20 + [1] * 10 + [0] * 10
    assert history.picture(1e6).shape == (6, MOST_COLUMNS)
    assert RankHistory().picture(10).size == 0


def test_a_run_that_goes_on_from_a_checkpoint_forgets_what_came_after(history: RankHistory) -> None:
    history.add(chosen(20, 5, 5, 5, 5, 5, 5))
    assert history.steps == [0, 20] and history.ranks_at(30).tolist() == [5] * 6


def test_events_survive_json_and_reach_the_record() -> None:
    assert events.from_json(events.to_json(LOG[1])) == LOG[1]
    record = RunRecord.from_log(Path("r"), LOG, "finished", 0.9)
    assert record.ranks.steps == [0, 20, 30]


def test_the_table_has_a_line_for_each_choice(history: RankHistory) -> None:
    lines = list(csv.reader(history.as_csv().splitlines()))
    assert lines[0] == ["step", "budget", *history.modules]
    assert lines[3] == ["30", "23", "0", "2", "4", "6", "6", "5"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_rank_has_a_colour_of_its_own(themed: Theme, scheme: str) -> None:
    themed.set_scheme(scheme)  # type: ignore[arg-type]
    table = rank_colors(12).astype(int)
    assert table.shape == (13, 4) and len({tuple(color) for color in table.tolist()}) == 13
    light = table[:, :3].sum(axis=1)
    assert np.all(np.diff(light) < 0) if scheme == "light" else np.all(np.diff(light) > 0)
    assert len(rank_colors(0)) == 1


def test_only_a_run_whose_ranks_move_offers_the_map(page: TrainPage) -> None:
    assert not page.plots.views.isVisible() and page.plots._title.isVisible()
    plot = show_ranks(page)
    assert page.plots.views.isVisible() and plot.isVisible() and not page.plots.loss.isVisible()
    assert page.plots.ranks.tools.isVisible() and not page.plots.tools.isVisible()
    page.begin(Path("/runs/two"))  # another run, of another method
    page._refresh()
    page.plots.group.redraw()
    assert not page.plots.views.isVisible() and page.plots.loss.isVisible() and page.plots.tools.isVisible()


def test_the_picture_shows_the_ranks_up_to_the_newest_step(page: TrainPage) -> None:
    plot = show_ranks(page)
    table = rank_colors(6)
    image = painted(plot)
    assert image.shape == (6, 40, 4)
    assert (image[0, 0] == table[6]).all() and (image[0, 39] == table[0]).all() and (image[2, 25] == table[3]).all()
    plot.grab()
    (left, right), (low, high) = plot._view.viewRange()
    assert left <= 1 and right >= 40 and (low, high) == (0, 6)
    page.on_event(step_done(41))
    page.plots.group.redraw()
    assert painted(plot).shape == (6, 41, 4)


def test_the_mouse_reads_a_matrix_and_moves_the_cross_hair_of_all_plots(page: TrainPage, qtbot: QtBot) -> None:
    plot = show_ranks(page)
    qtbot.wait(20)
    plot._mouse_moved(plot._view.mapViewToScene(QPointF(25.2, 1.5)))
    words = "model.layers.1.self_attn.q_proj: rank 2 of 6 at step 25"
    assert page.plots.ranks.words.full_text == words
    assert words in QToolTip.text()
    assert page.plots.group.cursor == 25
    plot._mouse_moved(QPointF(-5, -5))
    assert page.plots.ranks.words.full_text == "Step 40: 23 ranks in 5 of 6 matrices, at first 36"


def test_the_arrow_keys_go_from_matrix_to_matrix(page: TrainPage) -> None:
    plot = show_ranks(page)
    for key in (Qt.Key.Key_Down, Qt.Key.Key_Down, Qt.Key.Key_Left):
        plot.keyPressEvent(QKeyEvent(QEvent.Type.KeyPress, key, Qt.KeyboardModifier.NoModifier))
    assert page.plots.ranks.words.full_text.startswith("model.layers.1.self_attn.q_proj: rank 2 of 6 at step 40")
    plot.keyPressEvent(QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_Escape, Qt.KeyboardModifier.NoModifier))
    assert page.plots.ranks.words.full_text.startswith("Step 40:")


def test_the_scheme_changes_the_colours_at_once(page: TrainPage, themed: Theme, qtbot: QtBot) -> None:
    plot = show_ranks(page)
    before = painted(plot).copy()
    themed.set_scheme("dark")
    qtbot.wait(20)
    assert (painted(plot)[0, 39] == rank_colors(6)[0]).all() and not (painted(plot) == before).all()


def test_it_is_saved_as_picture_and_table(page: TrainPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show_ranks(page)
    save = page.plots.ranks.saver
    for name, ask in (("a.png", save.ask_picture), ("a.csv", save.ask_table)):
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, name=name: (str(tmp_path / name), ""))
        ask()
        assert page.plots.ranks.message.text() == f"Saved {name}."
    assert QImage(str(tmp_path / "a.png")).width() == 2 * page.plots.ranks.picture.width()
    assert (tmp_path / "a.csv").read_text() == page.plots.ranks.plot.history.as_csv()


def test_many_matrices_over_a_long_run_are_drawn_quickly(qtbot: QtBot) -> None:
    history = RankHistory()
    names = [f"model.layers.{layer}.mlp.kind_{kind}" for layer in range(80) for kind in range(7)]
    for step in range(0, 60_000, 100):
        history.add(events.RanksChosen(step, dict.fromkeys(names, step % 13), 1))
    plot = RankPlot()
    qtbot.addWidget(plot)
    plot.show_history(history, Series())
    begin = time.perf_counter()
    plot.redraw((0, 60_000))
    plot.grab()
    assert time.perf_counter() - begin < 1.0  # measured: 0.1 s
