"""The JSON beside an adapter's tensors, read with care: it may come from anywhere."""

import json
from pathlib import Path
from typing import Any

from core.errors import AdapterError

_LARGEST_BYTES = 4 * 2**20


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        AdapterError: missing, far too large, no JSON or no object.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise AdapterError(f"{path} is far too large for a configuration.")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} is not an adapter: it has no {path.name}.") from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} does not hold a JSON object.")
    return values
