"""What lies beside the weights of a merged model: tokenizer, chat template, generation config, config."""

import json
import shutil
from pathlib import Path
from typing import Any

from core import files
from core.errors import ModelError
from core.models.json_file import read_object
from core.models.safety import WEIGHTS_INDEX

_KEPT_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
_KEPT_NAMES = ("LICENSE", "NOTICE", "USE_POLICY")
_TEMPLATE_FOLDER = "additional_chat_templates"
_LONG_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_DTYPE_KEYS = ("dtype", "torch_dtype")
# written anew, describing other weights, or no part of a model
_LEFT_OUT = frozenset({"config.json", "workbench.json", "receipt.json", "adapter_config.json", "trainer_state.json",
                       "training_args.json", WEIGHTS_INDEX})
_MAX_CONFIG_BYTES = 4 * 2**20


def copy_companions(base: Path, folder: Path) -> None:
    """Copy the tokenizer, templates, generation config and licence files of `base` into `folder`."""
    sources = [path for path in sorted(base.iterdir()) if path.is_file() and _is_kept(path)]
    templates = base / _TEMPLATE_FOLDER
    if templates.is_dir():
        sources += sorted(path for path in templates.glob("*.jinja") if path.is_file())
    for source in sources:
        target = folder / source.relative_to(base)
        target.parent.mkdir(exist_ok=True)
        with files.atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)  # follows the hub cache's links


def _is_kept(path: Path) -> bool:
    if path.name in _LEFT_OUT or path.name.startswith(".") or path.name.endswith(".index.json"):
        return False
    return path.suffix.lower() in _KEPT_SUFFIXES or path.name.upper().startswith(_KEPT_NAMES)


def write_model_config(base: Path, folder: Path, dtype: str, untied: bool, vocabulary: int | None = None) -> None:
    """Write config.json for the merged model.

    Args:
        base: the base model's folder.
        folder: where the merged model is being written.
        dtype: "base" leaves the type named there; else this one is named.
        untied: the output layer no longer shares the embedding's weights.
        vocabulary: the number of tokens where it grew.
    """
    config = read_object(base / "config.json", _MAX_CONFIG_BYTES)
    config.pop("auto_map", None)  # names program files, which are never copied
    if dtype != "base":
        _set_dtype(config, _LONG_DTYPES[dtype])
    if untied:
        for section in (config, *(value for value in config.values() if isinstance(value, dict))):
            if section is config or "tie_word_embeddings" in section:
                section["tie_word_embeddings"] = False
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        if vocabulary is not None and "vocab_size" in section:
            section["vocab_size"] = vocabulary
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{base / 'config.json'} does not say what kind of model it is (model_type).")
    files.write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _set_dtype(config: dict[str, Any], name: str) -> None:
    for section in config.values():
        if isinstance(section, dict):
            for key in _DTYPE_KEYS:
                if key in section:
                    section[key] = name
    present = [key for key in _DTYPE_KEYS if key in config] or ["dtype"]
    for key in present:
        config[key] = name


def companion_bytes(base: Path) -> int:
    """Bytes that `copy_companions` will write."""
    return sum(path.stat().st_size for path in base.iterdir() if path.is_file() and _is_kept(path))
