"""`init --from`: a run file that goes on from an adapter."""

from collections.abc import Generator
from pathlib import Path

from core.config import RunConfig
from core.control import Control
from core.engine.job_table import run_job
from core.errors import AdapterError
from core.events import AdapterInspected, Event, Result
from core.jobs import InspectAdapter
from core.records import AdapterCard
from core.start import going_on_from


def going_on(config: RunConfig, start: Path, model: str, control: Control) -> Generator[Event, None, RunConfig]:
    """`config` with the settings of the adapter `start` and its base model.

    Args:
        config: gives the data and how to train.
        start: an adapter's folder, or a run's.
        model: the base, "" for the first on this machine that fits.
        control: tells of a stop.

    Raises:
        CoreError: it can not be read or gone on from, or no base model on this machine fits it.
    """
    card: AdapterCard | None = None
    for event in run_job(InspectAdapter(start.absolute(), model), control):
        if isinstance(event, AdapterInspected):
            card = event.card
        elif not isinstance(event, Result):
            yield event
    assert card is not None, "an inspection without a card has raised"
    if not card.settings:
        raise AdapterError(f"Training can not go on from {start}: {card.unlike}.", "Choose another adapter.")
    if not card.bases:
        raise AdapterError(f"No model on this machine fits {start}.", "Get its base model, and name it with --model.")
    return going_on_from(config, card.settings, model or str(card.bases[0].path))
