"""What the tests of training share."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty short conversations."""
    file = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"How many pizzas? {number}"},
                          {"role": "assistant", "content": f"I would like {number} pizzas."}]} for number in range(40)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file
