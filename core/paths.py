"""Where the program keeps its files. LORA_WORKBENCH_HOME moves all of it (tests, portable use)."""

import os
from pathlib import Path

import platformdirs

RESOURCES = Path(__file__).resolve().parent.parent / "resources"
SAMPLE = RESOURCES / "samples" / "orders"  # the sample task that comes along
SAMPLE_RUN_FILE = SAMPLE / "run.toml"
SAMPLE_HELD_OUT = SAMPLE / "heldout.jsonl"


def data_root() -> Path:
    """The user's data folder; not created here."""
    home = os.environ.get("LORA_WORKBENCH_HOME")
    return Path(home) if home else Path(platformdirs.user_data_dir("LoRA Workbench", appauthor=False))


def models_root() -> Path:
    """The model library: one folder for each model, in Hugging Face layout."""
    return data_root() / "models"


def runs_root() -> Path:
    """One folder for each run."""
    return data_root() / "runs"


def adapters_root() -> Path:
    """Adapters that no run made here: mixes and imported ones, one folder each, in PEFT layout."""
    return data_root() / "adapters"


def cache_root() -> Path:
    """What can be made again: probe results, tokenised rows."""
    return data_root() / "cache"


def logs_root() -> Path:
    """Output of the engine processes."""
    return data_root() / "logs"
