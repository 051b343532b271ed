import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import build_tiny

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.full
def test_families_on_this_machine_are_imported_ahead(home: Path, tmp_path: Path) -> None:
    for family in ("llama", "gpt2"):
        build_tiny(family, home / "models" / family)
    broken = Path(shutil.copytree(home / "models" / "llama", home / "models" / "broken"))
    (broken / "tokenizer.json").write_text("{")
    program = ("import sys\nfrom core.models.warm import import_families\nimport_families()\n"
               "names = [f'transformers.models.{name}.modeling_{name}' for name in ('llama', 'gpt2', 'gemma2')]\n"
               "print([name in sys.modules for name in names])")
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[True, True, False]"
