"""What must hold before anything of a model folder is loaded. Bounded in time and memory.

Nothing that a folder says may run code: no pickle, no remote code, no kernel from the hub. Only
regular files inside the folder are read; in the hub cache, also the blobs its links lead to.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Any

from core.adapter_folder import is_adapter_folder
from core.errors import ModelError
from core.models.json_file import read_object, require_regular
from core.models.safetensors_header import SafetensorsHeader, read_header

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
# Any one of these groups is a whole tokenizer.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("tekken.json",),
              ("spiece.model",), ("sentencepiece.bpe.model",), ("vocab.txt",))
_READ_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja"})

_MAX_CONFIG_BYTES = 4 * 1024**2
_MAX_TOKENIZER_CONFIG_BYTES = 32 * 1024**2
_MAX_INDEX_BYTES = 32 * 1024**2
_MAX_TOKENIZER_BYTES = 256 * 1024**2
_MAX_ENTRIES = 10_000
_MAX_SHARDS = 2_000


def check_model_folder(path: Path) -> list[SafetensorsHeader]:
    """Everything that must hold before the model may be loaded. Returns the verified weight headers.

    Raises:
        ModelError: one sentence on what is missing, damaged or unsafe.
    """
    headers = check_files(path)
    _require_known_type(path, read_config(path))
    return headers


def check_config(path: Path) -> None:
    """What must hold before a model is built from its config.json alone, without weights.

    Raises:
        ModelError: see `check_model_folder`.
    """
    require_folder(path)
    _require_regular_entries(path)
    _require_known_type(path, read_config(path))


def check_files(path: Path) -> list[SafetensorsHeader]:
    """The checks that need neither torch nor transformers. Returns the verified weight headers.

    Raises:
        ModelError: see `check_model_folder`.
    """
    require_folder(path)
    _require_regular_entries(path)
    read_config(path)
    for name, limit in (("generation_config.json", _MAX_CONFIG_BYTES),
                        ("tokenizer_config.json", _MAX_TOKENIZER_CONFIG_BYTES)):
        if (path / name).exists():
            _refuse_remote_code(read_object(path / name, limit), path / name)
    headers = read_headers(path)
    _require_tokenizer(path)
    return headers


def require_folder(path: Path) -> None:
    """Raises ModelError unless `path` is a folder that holds a whole model and not an adapter."""
    if path.suffix.lower() == ".gguf" and path.is_file():
        raise ModelError(f"{path.name} is a GGUF file; it must be imported into the model library first.",
                         "Open it on the Model page, which imports it once.")
    if path.is_file():
        raise ModelError(f"{path} is a file, not a model folder.",
                         "Choose the folder that holds config.json and model.safetensors.")
    if not path.is_dir():
        raise ModelError(f"The model folder {path} does not exist.", "Check the path.")
    if is_adapter_folder(path):
        # transformers would follow it to another model
        raise ModelError(f"{path} holds an adapter, not a whole model.", "Choose the base model of this adapter.")


def read_config(path: Path) -> dict[str, Any]:
    """config.json as a dictionary.

    Raises:
        ModelError: missing, not an object, without model_type, quantised, or asking for foreign code.
    """
    file = path / "config.json"
    if not file.exists():
        raise ModelError(f"{path} has no config.json, so it is not a model folder.", _hint_for_strays(path))
    values = read_object(file, _MAX_CONFIG_BYTES)
    _refuse_remote_code(values, file)
    if not isinstance(values.get("model_type"), str):
        raise ModelError(f"{file} does not say what kind of model it is (model_type).", "Fetch the model again.")
    quantization = values.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "") if isinstance(quantization, dict) else ""
        raise ModelError(f"The model in {path} is stored quantised ({method or 'unknown method'}), "
                         "which can not be trained on.", "Choose the version of it in bf16, fp16 or fp32.")
    return values


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder, in the order of their names.

    Raises:
        ModelError: none, pickle only, or an index that leads astray.
    """
    if (path / WEIGHTS).exists():
        return [path / WEIGHTS]
    if (path / WEIGHTS_INDEX).exists():
        return [path / name for name in sorted(set(read_weight_map(path).values()))]
    names = sorted(item.name for item in path.iterdir())
    if any(Path(name).suffix.lower() in PICKLE_SUFFIXES for name in names):
        raise ModelError(f"The model in {path} has its weights only as pickle files, which can run code; "
                         "they are not opened.", "Get the safetensors version of this model.")
    raise ModelError(f"{path} has no {WEIGHTS}.", _hint_for_strays(path))


def read_weight_map(path: Path) -> dict[str, str]:
    """The index's table from tensor name to shard name; every shard is a plain name in the folder.

    Raises:
        ModelError: damaged, or a shard name that leaves the folder.
    """
    file = path / WEIGHTS_INDEX
    table = read_object(file, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{file} has no weight_map.", "Fetch the model again.")
    shards = set()
    for name in table.values():
        if not isinstance(name, str) or not is_plain_name(name) or not name.endswith(".safetensors"):
            raise ModelError(f"{file} names {str(name)[:120]!r} as a part of the model, "
                             "which is not the name of a safetensors file in this folder.")
        shards.add(name)
    if len(shards) > _MAX_SHARDS:
        raise ModelError(f"{file} names {len(shards):,} parts, more than {_MAX_SHARDS:,}.")
    return table


def read_headers(path: Path) -> list[SafetensorsHeader]:
    """The verified headers of all weight files; the index and the files agree.

    Raises:
        ModelError: a file is missing or damaged, or the index names what is not there.
    """
    files = weight_files(path)
    for file in files:
        _require_inside(path, file)
    headers = [read_header(file) for file in files]
    if files == [path / WEIGHTS]:
        return headers
    held = {header.path.name: header.tensors for header in headers}
    for tensor, shard in read_weight_map(path).items():
        if tensor not in held[shard]:
            raise ModelError(f"{path / shard} lacks the tensor {tensor[:120]} that the index promises.",
                             "Fetch the model again.")
    return headers


def is_plain_name(name: str) -> bool:
    """True for a file name without any path part, hidden start or control character."""
    return (0 < len(name) <= 255 and name == PurePosixPath(name).name and not name.startswith(".")
            and not any(char in "\\:" or ord(char) < 32 for char in name))


def _require_known_type(path: Path, config: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING  # noqa: PLC0415 - heavy

    if config["model_type"] in CONFIG_MAPPING:
        return  # an auto_map beside it is ignored
    if "auto_map" in config:
        raise ModelError(f"The model in {path} wants to run its own program code, which is never done here.",
                         "Choose a model of a family that the transformers library knows itself.")
    raise ModelError(f"The model in {path} is of the kind {config['model_type'][:60]!r}, which is not known here.",
                     "A newer version of the transformers library may know it.")


def _refuse_remote_code(values: Any, file: Path) -> None:
    """Walks all levels: a nested config is as good a place to hide a request as the top."""
    if isinstance(values, list):
        for item in values:
            _refuse_remote_code(item, file)
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        implementation = key.lstrip("_").endswith("_implementation") and isinstance(value, str) and "/" in value
        if key.endswith("_internal") or implementation or (key == "trust_remote_code" and value is not False):
            raise ModelError(f"{file} asks for program code from elsewhere ({key[:60]}), which is never done here.",
                             "Do not use this model, or ask its author for a version without it.")
        _refuse_remote_code(value, file)


def _require_regular_entries(path: Path) -> None:
    """Every file that a loader might open is regular and lies inside the folder."""
    folders = [path, path / "additional_chat_templates"]
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _MAX_ENTRIES:
                    raise ModelError(f"{folder} holds more than {_MAX_ENTRIES:,} files; that is no model folder.")
                file = Path(entry.path)
                if file.suffix.lower() in _READ_SUFFIXES and file.exists() and not file.is_dir():
                    require_regular(file)
                    _require_inside(path, file)


def _require_inside(root: Path, file: Path) -> None:
    """`file`, with links followed, lies in `root` or in the blobs of the hub cache that `root` is a part of."""
    require_regular(file)
    real, home = file.resolve(), root.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise ModelError(f"{file} is a link that leads out of the model folder.",
                         "Put the file itself in its place.")


def _require_tokenizer(path: Path) -> None:
    for group in TOKENIZERS:
        if all((path / name).exists() for name in group):
            for name in group:
                size = require_regular(path / name)
                if size > _MAX_TOKENIZER_BYTES:
                    raise ModelError(f"{path / name} is {size:,} bytes long, far more than any tokenizer.")
            return
    raise ModelError(f"{path} has no tokenizer (tokenizer.json).",
                     "Copy the tokenizer files of this model beside its weights.")


def _hint_for_strays(path: Path) -> str:
    if any(item.suffix.lower() == ".gguf" for item in path.iterdir()):
        return "It holds a GGUF file; choose that file itself to import it."
    return "Choose a folder in Hugging Face layout, with config.json, model.safetensors and a tokenizer."
