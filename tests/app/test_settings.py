"""What the window remembers lies in the program's own folder and survives damage."""

from pathlib import Path

import pytest
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from app.settings import RECENT_FILES, Settings, restore_geometry
from core.config import parse_config
from core.errors import ConfigError


def test_values_come_back_and_lie_in_the_home(home: Path) -> None:
    settings = Settings()
    assert (settings.scheme, settings.recent, settings.draft_name) == ("system", [], "")
    settings.scheme, settings.draft_name = "dark", "mine"
    settings.add_recent("/a")
    settings.sync()
    again = Settings()
    assert (again.scheme, again.draft_name, again.recent) == ("dark", "mine", ["/a"])
    assert (home / "window.ini").exists()


def test_recent_files_are_few_and_newest_first() -> None:
    settings = Settings()
    for number in range(RECENT_FILES + 3):
        settings.add_recent(f"/{number}")
    settings.add_recent("/5")
    assert settings.recent[0] == "/5" and len(settings.recent) == RECENT_FILES == len(set(settings.recent))


def test_an_unfinished_run_is_kept_and_a_damaged_one_put_aside(home: Path, tmp_path: Path) -> None:
    settings = Settings()
    assert settings.load_draft() is None
    config = parse_config({"adapter": {"rank": 5}, "data": {"train": [str(tmp_path / "a.jsonl")]}})
    settings.save_draft(config)
    assert settings.load_draft() == config
    (home / "draft.toml").write_text("[adapter]\nrank = 'many'\n")
    with pytest.raises(ConfigError, match="can not be read") as told:
        settings.load_draft()
    assert "draft-unreadable.toml" in told.value.hint and (home / "draft-unreadable.toml").exists()
    assert settings.load_draft() is None


def test_a_window_of_a_monitor_that_is_gone_comes_back_to_a_screen(qtbot: QtBot) -> None:
    settings, far = Settings(), QWidget()
    qtbot.addWidget(far)
    far.setGeometry(9000, 9000, 800, 600)
    settings.geometry = far.saveGeometry()
    window = QWidget()
    qtbot.addWidget(window)
    window.setGeometry(9000, 9000, 800, 600)
    restore_geometry(window, settings)
    assert window.screen().availableGeometry().contains(window.geometry().center())
