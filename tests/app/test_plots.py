"""The plots: bounded drawing, NaN, linked ranges, cross-hair, export."""

import math
import time
from pathlib import Path

import numpy as np
import pyqtgraph as pg
import pytest
from page_fakes import step_done
from PySide6.QtCore import QEvent, QPointF, Qt
from PySide6.QtGui import QImage, QKeyEvent, QPalette
from PySide6.QtWidgets import QApplication, QFileDialog, QVBoxLayout, QWidget
from pytestqt.qtbot import QtBot

from app import theme
from app.colors import DARK, LIGHT
from app.plot_group import PlotGroup
from app.plot_panel import PlotMenu, PlotTools, smoothing_of
from app.plot_saving import save_picture, save_table
from app.plots import Curve, StepPlot, curve_color, round_below, value_range
from app.run_plots import RunPlots
from app.series import Series


def series_of(values: np.ndarray, smoothing: float = 0.9) -> Series:
    series = Series()
    series._steps.replace(np.arange(1, len(values) + 1, dtype=float))
    series._values.replace(values.astype(float))
    series.set_smoothing(smoothing)
    return series


def shown(qtbot: QtBot, series: Series, smoothed: bool = True) -> tuple[QWidget, StepPlot, PlotGroup]:
    window = QWidget()
    qtbot.addWidget(window)
    plot, group = StepPlot("Loss"), PlotGroup(window)
    group.add(plot)
    QVBoxLayout(window).addWidget(plot)
    plot.set_curves([Curve("loss", series, smoothed=smoothed)])
    window.resize(700, 400)
    window.show()
    group.redraw()
    return window, plot, group


def test_a_million_points_are_drawn_in_bounded_time(qtbot: QtBot) -> None:
    values = np.random.default_rng(0).normal(1.0, 0.1, 1_000_000)
    values[::1000] = np.nan
    window, plot, group = shown(qtbot, series_of(values))
    window.grab()
    begin = time.perf_counter()
    for _ in range(3):
        group.redraw()
        plot.grab()
    assert (time.perf_counter() - begin) / 3 < 1.0  # measured: 0.04 s; plain drawing takes many seconds
    item = plot._items[0][1]
    assert len(item.getData()[0]) < 20_000  # what is painted, not what is stored


def test_nan_and_infinity_do_not_break_drawing_or_ranges(qtbot: QtBot) -> None:
    values = np.array([2.0, np.nan, np.inf, 1.0, -np.inf, 0.5])
    _, plot, group = shown(qtbot, series_of(values))
    plot.grab()
    (left, right), (low, high) = plot._view.viewRange()
    assert all(math.isfinite(edge) for edge in (left, right, low, high))
    assert low < 0.5 and high > 2.0
    bad = plot._items[0][3]
    assert len(bad.data) == 3  # a cross for each number that is none
    plot.set_log(True)
    group.redraw()
    plot.grab()


def test_only_nan_shows_an_empty_plot(qtbot: QtBot) -> None:
    _, plot, _ = shown(qtbot, series_of(np.full(5, np.nan)))
    plot.grab()
    assert value_range(plot.curves, (0, 10), False) == (0.0, 1.0)


def test_value_range_follows_the_steps_that_are_seen() -> None:
    curve = Curve("x", series_of(np.array([100.0, 3.0, 2.0, 1.0])))
    assert value_range([curve], (3, 4), False) == (1.0, 3.0)
    assert value_range([curve], (0, 9), True) == (0.0, 2.0)


def test_redraws_only_when_something_changed(qtbot: QtBot) -> None:
    series = series_of(np.ones(10))
    _, _, group = shown(qtbot, series)
    drawn: list[int] = []
    group.redrawn.connect(lambda: drawn.append(1))
    qtbot.wait(250)
    assert not drawn
    for step in range(11, 200):
        series.append(step, 1.0)
        group.changed()
    qtbot.waitUntil(lambda: bool(drawn), timeout=2000)
    assert len(drawn) == 1


def test_zoom_is_shared_and_double_click_resets(qtbot: QtBot) -> None:
    window, first, group = shown(qtbot, series_of(np.arange(100.0)))
    second = group.add(StepPlot("LR", small=True))
    second.set_curves([Curve("lr", series_of(np.arange(100.0)))])
    window.layout().addWidget(second)
    group.redraw()
    second._view.setXRange(20, 40, padding=0)
    second._view.sigRangeChangedManually.emit([True, False])
    assert first.x_range() == pytest.approx((20, 40))
    assert group.zoomed_in
    low, high = first._view.viewRange()[1]
    assert low > 10 and high < 50  # the values that are seen
    second.reset_requested.emit()
    assert not group.zoomed_in
    assert first.x_range()[1] > 99


def test_cross_hair_snaps_to_steps_and_moves_by_keys(qtbot: QtBot) -> None:
    _, plot, group = shown(qtbot, series_of(np.arange(50.0)))
    group.point_at(10.4)
    assert group.cursor == 10
    for key in (Qt.Key.Key_Right, Qt.Key.Key_Right, Qt.Key.Key_Left):
        plot.keyPressEvent(QKeyEvent(QEvent.Type.KeyPress, key, Qt.KeyboardModifier.NoModifier))
    assert group.cursor == 11
    plot.keyPressEvent(QKeyEvent(QEvent.Type.KeyPress, Qt.Key.Key_End, Qt.KeyboardModifier.NoModifier))
    assert group.cursor == 50
    plot._mouse_moved(QPointF(-50, -50))
    assert group.cursor is None


def test_read_out_tells_every_series_at_the_step(qtbot: QtBot) -> None:
    plots = RunPlots(lambda: "x")
    qtbot.addWidget(plots)
    for step in range(1, 21):
        plots._series.add(step_done(step, loss=float(step), learning_rate=step * 1e-5))
    plots.group.redraw()
    plots.group.point_at(7)
    assert plots.read_out.texts()[0] == "7.000"
    assert plots.read_out.texts()[2] == "—"
    assert plots.values()["learning_rate"] == "7e-5"
    assert plots.values()["tokens_per_second"] == "200.0"
    plots.group.point_at(None)
    assert plots.read_out.texts()[0] == "20.000"


def test_colours_follow_the_scheme(qtbot: QtBot) -> None:
    app = QApplication.instance()
    assert isinstance(app, QApplication)
    before = app.palette()
    _, plot, _ = shown(qtbot, series_of(np.ones(3)))
    try:
        app.setPalette(theme.palette(DARK))
        qtbot.wait(10)
        dark = curve_color(0)
        assert plot.backgroundBrush().color().name().upper() == DARK.surface
        app.setPalette(theme.palette(LIGHT))
        qtbot.wait(10)
        assert plot.backgroundBrush().color().name().upper() == LIGHT.surface
        assert curve_color(0) != dark
    finally:
        app.setPalette(QPalette(before))


def test_picture_and_table_are_saved_whole(qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = series_of(np.array([1.0, 2.0]))
    window, plot, group = shown(qtbot, series)
    save_picture(window, tmp_path / "a.png")
    image = QImage(str(tmp_path / "a.png"))
    assert image.width() == 2 * window.width()
    save_table({"loss": series}, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines() == ["step,loss", "1,1.0", "2,2.0"]
    tools = PlotTools(group, plot, window, lambda: {"loss": series}, lambda: "run")
    qtbot.addWidget(tools)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "b"), ""))
    tools.saver.ask_table()
    assert (tmp_path / "b.csv").exists() and tools.message.text() == "Saved b.csv."
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "file" / "c.png"), ""))
    tools.saver.ask_picture()
    assert tools.message.property("role") == "error" and tools.message.text()


def test_tools_change_scale_and_smoothing(qtbot: QtBot) -> None:
    plots = RunPlots(lambda: "x")
    qtbot.addWidget(plots)
    for step in range(1, 50):
        plots._series.add(step_done(step, loss=step % 2 + 1.0))
    plots.tools.smoothing.setValue(0)
    assert plots._series.loss.smoothing == 0.0
    plots.tools.smoothing.setValue(100)
    assert plots._series.loss.smoothing == pytest.approx(0.99)
    assert smoothing_of(50) == pytest.approx(0.9)
    plots.tools.log.setChecked(True)
    assert plots.loss._log


def test_small_plots_have_scale_and_saving_of_their_own(qtbot: QtBot, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    plots = RunPlots(lambda: "orders")
    qtbot.addWidget(plots)
    plots.show()
    for step in range(1, 5):
        plots._series.add(step_done(step, learning_rate=10.0 ** -step))
    plot, _ = plots._small["learning_rate"]
    menu = plot.findChild(PlotMenu)
    assert menu is not None
    actions = {action.text(): action for action in menu.actions()}
    actions["Log scale"].trigger()
    assert plot._log and not plots.loss._log
    names = []
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda _self, _title, name, _kinds: (
        names.append(name), (str(tmp_path / name), ""))[1])
    actions["Save table (CSV)…"].trigger()
    actions["Save picture (PNG)…"].trigger()
    assert names == ["orders learning rate.csv", "orders learning rate.png"]
    assert (tmp_path / names[0]).read_text().splitlines()[:2] == ["step,learning_rate", "1,0.1"]
    assert QImage(str(tmp_path / names[1])).width() == 2 * plot.width()


def test_another_run_takes_the_items_over(qtbot: QtBot) -> None:
    _, plot, group = shown(qtbot, series_of(np.array([2.0, 1.0])))
    before = plot._items[0][1:]
    other = series_of(np.array([3.0, 5.0, 4.0]))
    plot.set_curves([Curve("loss", other, smoothed=True), Curve("validation", other, 1, points=True)])
    group.redraw()
    assert plot._items[0][1:] == before and len(plot._items) == 2
    assert plot._items[0][1].getOriginalDataset()[1].tolist() == [3.0, 5.0, 4.0]
    plot.set_curves([Curve("loss", other)])  # without a moving average: another kind of curve
    group.redraw()
    assert len(plot._items) == 1 and plot._items[0][2] is None
    assert sum(isinstance(item, pg.PlotDataItem) for item in plot.getPlotItem().items) == 1


def test_the_cross_hair_lies_on_the_curve(qtbot: QtBot) -> None:
    series = series_of(np.array([4.0, 2.0, 1.0]))
    series.set_smoothing(0.0)
    _, plot, group = shown(qtbot, series)
    group.point_at(2)
    assert plot._line.value() == 2 and plot._level.isVisible() and plot._level.value() == 2.0
    plot.set_log(True)
    group.redraw()
    assert plot._level.value() == pytest.approx(math.log10(2.0))
    group.point_at(None)
    assert not plot._level.isVisible() and not plot._line.isVisible()


@pytest.mark.parametrize(("value", "expected"),
                         [(0.00019, 0.0001), (7.3, 5), (1.0, 1), (0, 0), (math.nan, 0), (450, 200)])
def test_round_below(value: float, expected: float) -> None:
    assert round_below(value) == pytest.approx(expected)
