"""The names and the state of a run folder."""

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.runs.folder import RunFolder


def test_checkpoints_are_in_the_order_of_their_steps_beyond_a_million(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1_000_000, 999_950, 50):
        run.checkpoint(step).mkdir(parents=True)
    assert [folder.name for folder in run.checkpoint_folders()] == ["step-000050", "step-999950", "step-1000000"]


def test_a_folder_without_a_run_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunFolder(tmp_path / "nowhere").config()


def test_remains_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoint(5).mkdir(parents=True)
    (run.checkpoints / ".step-000006.new.tmp").mkdir()
    (tmp_path / ".run.toml.abc.tmp").touch()
    run.lock_path.touch()
    run.remove_remains()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "checkpoints", "step-000005"]
