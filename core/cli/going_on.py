"""`init --from`: a run file that goes on from an adapter."""

from collections.abc import Generator
from pathlib import Path

from core.adapter_folder import ORIGIN_NAME, read_object
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
        model: the base, "" for the one on this machine that it was trained on, or the only one that fits.
        control: tells of a stop.

    Raises:
        CoreError: it can not be read or gone on from, or it is not clear which base model it belongs to.
    """
    card: AdapterCard | None = None
    for event in run_job(InspectAdapter(start.expanduser().absolute(), model), control):
        if isinstance(event, AdapterInspected):
            card = event.card
        elif not isinstance(event, Result):
            yield event
    assert card is not None, "an inspection without a card has raised"
    if not card.settings:
        raise AdapterError(f"Training can not go on from {start}: {card.unlike}.", "Choose another adapter.")
    return going_on_from(config, card.settings, _base_of(card, model))


def _base_of(card: AdapterCard, model: str) -> str:
    """`model`, or the base model on this machine. Raises AdapterError where none is surely the right one."""
    same = [match for match in card.bases if match.match == "same"]
    named = "Get it, and name it with --model."
    if not same and (card.path / ORIGIN_NAME).exists() and read_object(card.path / ORIGIN_NAME).get("base_fingerprint"):
        what = f"was not trained on {model}" if model else "was trained on a model that is not on this machine"
        raise AdapterError(f"{card.path} {what}.", f"Its base model: {card.base_name}. {named}")
    if model:
        return model
    found = same or list(card.bases)
    if not found:
        raise AdapterError(f"No model on this machine fits {card.path}.", f"Its base model: {card.base_name}. {named}")
    if len(found) > 1 and not same:
        raise AdapterError(f"Several models on this machine fit {card.path}: "
                           f"{', '.join(match.name for match in card.bases)}.", "Name its base model with --model.")
    return str(found[0].path)
