"""The menu from which an adapter is added to the chat: runs, adapters that were saved, any folder."""

import itertools
from collections.abc import Callable
from pathlib import Path

from PySide6.QtWidgets import QFileDialog, QMenu, QPushButton

from app.ingredients import Ingredient, ingredient
from app.run_list import runs_with_adapters
from core.adapter_folder import is_adapter_folder
from core.paths import adapters_root
from core.start import adapter_folder

_MOST_RUNS = 20


class AdapterMenu(QMenu):
    """Filled whenever it opens.

    Args:
        button: opens it.
        root: gives the folder of the runs.
        chosen: is told the adapter.
        refused: is told why a folder can not be taken.
    """

    def __init__(self, button: QPushButton, root: Callable[[], Path], chosen: Callable[[Ingredient], object],
                 refused: Callable[[str], object]) -> None:
        super().__init__(button)
        self._root, self._chosen, self._refused = root, chosen, refused
        self.aboutToShow.connect(self.fill)
        button.setMenu(self)

    def fill(self) -> None:
        """Offer what is there now."""
        self.clear()
        self._group("Runs", run_ingredients(self._root()))
        self._group("Saved adapters", saved_adapters())
        self.addSeparator()
        self.addAction("Adapter folder…").triggered.connect(lambda _checked: self._browse())

    def _group(self, title: str, found: list[Ingredient]) -> None:
        if found:
            self.addAction(title).setEnabled(False)
        for one in found:
            action = self.addAction(one.name.replace("&", "&&"))
            action.triggered.connect(lambda _checked, one=one: self._chosen(one))

    def _browse(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self.parentWidget(), "Adapter folder", str(adapters_root()))
        if chosen:
            self.take(Path(chosen))

    def take(self, path: Path) -> None:
        """Take an adapter folder or a run folder that the person named."""
        folder = adapter_folder(path)
        if is_adapter_folder(folder):
            self._chosen(ingredient(folder, adapter_name(folder)))
        else:
            self._refused(f"{path.name} holds no adapter: it has no adapter_config.json.")


def adapter_name(folder: Path) -> str:
    """`run` for <runs>/run/adapter, `run, step-000200` for a checkpoint, else the folder's own name."""
    if folder.name == "adapter":
        return folder.parent.name
    if folder.parent.name == "checkpoints":
        return f"{folder.parent.parent.name}, {folder.name}"
    return folder.name


def run_ingredients(root: Path) -> list[Ingredient]:
    """The first adapter of every run that has one, the newest first; none where the folder can not be read."""
    try:
        runs = runs_with_adapters(root)
    except OSError:
        return []
    firsts = ((run, next((one for one in run.adapters if not one.whole), None)) for run in runs)
    found = ((first.path, run.name) for run, first in firsts if first is not None)
    return [ingredient(path, name) for path, name in itertools.islice(found, _MOST_RUNS)]


def saved_adapters() -> list[Ingredient]:
    """Adapters that no run made: mixes, and what was put there."""
    try:
        folders = sorted(path for path in adapters_root().iterdir() if is_adapter_folder(path))
    except OSError:
        return []
    return [ingredient(path, path.name) for path in folders]
