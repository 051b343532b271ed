"""The names in an adapter's folder, and what kind of folder it is, without reading tensors. Plain Python.

The folder itself holds what the table [adapter] asks for, in PEFT layout. What [prefix] and [bottleneck] add
lies in sub-folders, so that PEFT reads each part that it knows. A prefix that is alone lies in the folder itself.
"""

import json
from pathlib import Path
from typing import Any

from core.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
ORIGIN_NAME = "workbench.json"
PREFIX_FOLDER = "prefix"
BOTTLENECK_FOLDER = "bottleneck"
BOTTLENECK_CONFIG = "bottleneck_config.json"
BOTTLENECK_WEIGHTS = "bottleneck.safetensors"
PREFIX_TYPE, ADALORA_TYPE = "PREFIX_TUNING", "ADALORA"  # PEFT's names, in peft_type; LoRA and DoRA are "LORA"
_CONFIGS = (CONFIG_NAME, f"{PREFIX_FOLDER}/{CONFIG_NAME}", f"{BOTTLENECK_FOLDER}/{BOTTLENECK_CONFIG}")
_LARGEST_BYTES = 4 * 2**20  # of a configuration
_WEIGHTS = (WEIGHTS_NAME, f"{PREFIX_FOLDER}/{WEIGHTS_NAME}", f"{BOTTLENECK_FOLDER}/{BOTTLENECK_WEIGHTS}")


def is_adapter_folder(folder: Path) -> bool:
    """True if `folder` holds an adapter, or any of the parts that may stand beside one."""
    return any((folder / name).is_file() for name in _CONFIGS)


def adapter_folder_bytes(folder: Path) -> int:
    """Size of the tensors of all parts. Raises FileNotFoundError where there are none."""
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(2, "No such file", str(folder / WEIGHTS_NAME))
    return sum(path.stat().st_size for path in found)


def named_base(folder: Path) -> str:
    """The base model that the adapter's config names; "" where it names none or can not be read."""
    for name in _CONFIGS:
        try:
            base = json.loads((folder / name).read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(base, str) and base:
            return base
    return ""


def read_object(path: Path, largest: int = _LARGEST_BYTES) -> dict[str, Any]:
    """The JSON object in a file of an adapter's folder, read with care: it may come from anywhere.

    Raises:
        AdapterError: missing, far too large, no JSON or no object.
    """
    try:
        if path.stat().st_size > largest:
            raise AdapterError(f"{path} is far too large for a configuration.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} is not an adapter: it has no {path.name}.") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} does not hold a JSON object.")
    return values
