"""What menus and pages may ask of the window: its public doings, so that nothing else need know the window."""

from pathlib import Path
from typing import Protocol

from app.theme import Scheme
from core.config import RunConfig
from core.records import AdapterCard


class Actions(Protocol):
    """Implemented by `app.window.MainWindow`."""

    def show_page(self, key: str) -> None:
        """Open a page."""
        ...

    def open_data(self) -> None:
        """Let the person add data files."""
        ...

    def open_model(self) -> None:
        """Let the person open a model folder."""
        ...

    def open_run_file(self) -> None:
        """Let the person open a run file."""
        ...

    def open_recent(self, path: str) -> None:
        """A run file or a data file that was open before."""
        ...

    def open_sample(self) -> None:
        """Choose the sample with its own settings."""
        ...

    def start_training(self) -> None:
        """Start the run as it is put together."""
        ...

    def resume_training(self, run_dir: Path) -> None:
        """Go on with a run from its last checkpoint."""
        ...

    def pause_or_go_on(self) -> None:
        """Pause the run, or end the pause."""
        ...

    def repeat(self, config: RunConfig) -> None:
        """Take over the config of a run, to change and start again."""
        ...

    def show_run(self, run_dir: Path) -> None:
        """Show a run of the past."""
        ...

    def run_moved(self, before: Path, after: Path) -> None:
        """A run folder has another name now."""
        ...

    def run_deleted(self, run_dir: Path) -> None:
        """A run folder lies in the trash now."""
        ...

    def chat_with(self, run_dir: Path) -> None:
        """Try a run in Chat."""
        ...

    def export(self, run_dir: Path) -> None:
        """Open the export wizard for a run."""
        ...

    def open_folder(self, path: Path | None = None) -> None:
        """Show a run that lies elsewhere, or an adapter made elsewhere; None lets the person choose the folder."""
        ...

    def chat_with_adapter(self, path: Path, base: str) -> None:
        """Try an adapter that no run made, on this base model."""
        ...

    def train_from(self, card: AdapterCard, base: str) -> None:
        """Put a run together that goes on from an adapter."""
        ...

    def export_adapter(self, card: AdapterCard, base: str) -> None:
        """Open the export wizard for an adapter that no run made."""
        ...

    def use_all_gpus(self, all_of_them: bool) -> None:
        """Train on every GPU of this machine, or on one."""
        ...

    def run_elsewhere(self) -> None:
        """Show how the run is trained on other machines."""
        ...

    def show_command(self) -> None:
        """Show the equivalent command line and run file."""
        ...

    def set_scheme(self, scheme: Scheme) -> None:
        """Change the colours and remember it."""
        ...

    def about(self) -> None:
        """Version and license."""
        ...

    def close(self) -> bool:
        """Close the window; False if the person would rather not."""
        ...
