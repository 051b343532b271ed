"""Model folders that must be refused, each with one sentence, quickly and without reading on."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import build_tiny

from core.errors import ModelError
from core.models.load import load_model
from core.models.safety import check_files, check_model_folder


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def sharded_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("llama", tmp_path_factory.mktemp("sharded") / "model", shard_size="200KB")


@pytest.fixture
def sharded(sharded_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded_model, tmp_path / "sharded"))


def refused(path: Path, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=words) as caught:
        check_model_folder(path)
    assert time.monotonic() - start < 20
    assert "\n" not in caught.value.message and caught.value.message.endswith(".")


def change_json(file: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def write_safetensors(file: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def tensor(begin: int, end: int, dtype: str = "F32", shape: list | None = None) -> dict:
    return {"dtype": dtype, "shape": shape if shape is not None else [(end - begin) // 4],
            "data_offsets": [begin, end]}


def test_good_folders_pass(tiny_model: Path, sharded_model: Path) -> None:
    assert len(check_model_folder(tiny_model)) == 1
    assert len(check_model_folder(sharded_model)) > 1


def test_what_is_missing(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "does not exist")
    refused(folder / "config.json", "is a file, not a model folder")
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    refused(folder, "has no tokenizer")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    refused(folder, "pickle")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


def test_gguf_file_says_that_it_must_be_imported(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "x.gguf", "must be imported")


def test_adapter_folder_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    refused(folder, "adapter, not a whole model")


def test_pickle_under_another_name(folder: Path) -> None:
    for start in (b"PK\x03\x04", b"\x80\x02}q\x00."):
        (folder / "model.safetensors").write_bytes(start + bytes(100))
        refused(folder, "pickle file under another name")


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"{", b"\xff\xfe{}", b"null", b'{"a": 1, "a": 2}',
                                     b"[" * 200_000, b'{"a":' * 200_000, b'{"a":' + b"[" * 80 + b"]" * 80 + b"}"])
def test_config_that_is_no_object(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json")


def test_config_of_many_megabytes(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"model_type": "llama"}' + b" " * 5_000_000)
    refused(folder, "at most")


def test_config_without_or_with_unknown_type(folder: Path) -> None:
    change_json(folder / "config.json", lambda values: values.pop("model_type"))
    refused(folder, "what kind of model")
    change_json(folder / "config.json", lambda values: values.update(model_type="no-such-kind"))
    refused(folder, "not known here")


def test_remote_code(folder: Path) -> None:
    config = folder / "config.json"
    change_json(config, lambda values: values.update(
        model_type="my-own", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}))
    refused(folder, "its own program code")


def test_auto_map_beside_a_known_type_is_ignored(folder: Path) -> None:
    marker = folder.parent / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    auto_map = {"AutoConfig": "modeling_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine",
                "AutoTokenizer": ["modeling_mine.Mine", None]}
    change_json(folder / "config.json", lambda values: values.update(auto_map=auto_map))
    model = load_model(folder, torch.device("cpu"), torch.float32)
    assert type(model).__module__.startswith("transformers.models.llama")
    assert not marker.exists()


@pytest.mark.parametrize("values", [
    {"_attn_implementation_internal": "someone/kernel"}, {"a": {"b": [{"x_internal": 1}]}},
    {"text_config": {"trust_remote_code": True}}, {"trust_remote_code": 1},
    {"_attn_implementation": "someone/kernel"}, {"vision": {"attn_implementation": "a/b"}},
])
def test_keys_that_ask_for_code(folder: Path, values: dict) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        before = (folder / name).read_text()
        change_json(folder / name, lambda table: table.update(values))
        refused(folder, "program code from elsewhere")
        (folder / name).write_text(before)
    check_model_folder(folder)


def test_quantised_model(folder: Path) -> None:
    change_json(folder / "config.json",
                lambda values: values.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    refused(folder, "quantised .gptq.")


HEADERS = {
    "too short": (b"", b"", 4, "cut off|too short"),
    "claims terabytes": ({}, b"", 2**45, "header claims"),
    "header over the end": ({}, b"", 500, "cut off within its header"),
    "not JSON": (b"{not json", b"", None, "not valid JSON"),
    "not an object": (b"[1]", b"", None, "JSON object"),
    "deep": (b'{"a":' * 30_000, b"", None, "nested too deep"),
    "same name twice": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4), None, "twice"),
    "metadata twice": (b'{"__metadata__":{"a":"b"},"__metadata__":{}}', b"", None, "twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None, "metadata"),
    "path as name": ({"../../evil": tensor(0, 4)}, bytes(4), None, "not usable"),
    "slash in a name": ({"a/b": tensor(0, 4)}, bytes(4), None, "not usable"),
    "control character": ({"a\nb": tensor(0, 4)}, bytes(4), None, "not usable"),
    "long name": ({"a" * 600: tensor(0, 4)}, bytes(4), None, "not usable"),
    "empty name": ({"": tensor(0, 4)}, bytes(4), None, "not usable"),
    "unknown dtype": ({"a": tensor(0, 4, "Q4")}, bytes(4), None, "unknown number type"),
    "dtype is a list": ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4), None, "number type"),
    "negative shape": ({"a": tensor(0, 4, shape=[-1])}, bytes(4), None, "whole numbers"),
    "shape of booleans": ({"a": tensor(0, 4, shape=[True])}, bytes(4), None, "whole numbers"),
    "fractional offset": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}}, bytes(4), None, "whole"),
    "entry is no object": ({"a": 3}, b"", None, "not an object"),
    "size and shape differ": ({"a": tensor(0, 4, shape=[2])}, bytes(4), None, "does not fit its shape"),
    "begin after end": ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}}, bytes(4), None, "fit its shape"),
    "giant shape": ({"a": tensor(0, 4, shape=[2**61, 2**61])}, bytes(4), None, "fit its shape"),
    "overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12), None, "overlaps"),
    "gap": ({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12), None, "gap"),
    "cut off": ({"a": tensor(0, 400)}, bytes(40), None, "360 bytes are missing"),
    "extra bytes": ({"a": tensor(0, 4)}, bytes(40), None, "belong to no tensor"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_safetensors(folder: Path, name: str) -> None:
    header, data, length, words = HEADERS[name]
    if name == "too short":
        (folder / "model.safetensors").write_bytes(bytes(4))
    else:
        write_safetensors(folder / "model.safetensors", header, data, length)
    refused(folder, words)


def test_cut_at_any_place(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for length in range(0, len(content), 40_961):
        weights.write_bytes(content[:length])
        with pytest.raises(ModelError):
            check_files(folder)


@pytest.mark.parametrize("name", ["../model-00001-of-00003.safetensors", "/etc/passwd", "sub/x.safetensors",
                                  "..\\x.safetensors", "C:x.safetensors", "..", "", ".hidden.safetensors",
                                  "x.bin", "a" * 300 + ".safetensors", 7, None, ["x"]])
def test_shard_names_that_lead_astray(sharded: Path, name: object) -> None:
    change_json(sharded / "model.safetensors.index.json",
                lambda values: values["weight_map"].update({"model.norm.weight": name}))
    refused(sharded, "not the name of a safetensors file")


def test_index_and_shards_disagree(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    before = index.read_text()
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    change_json(index, lambda values: values["weight_map"].update({"model.no.such": shard.name}))
    refused(sharded, "lacks the tensor model.no.such")
    index.write_text(before)
    shard.unlink()
    refused(sharded, "can not be read")
    index.write_text('{"weight_map": []}')
    refused(sharded, "no weight_map")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                  "generation_config.json", "chat_template.jinja", "added_tokens.json"])
def test_pipe_is_refused_instead_of_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, "not a regular file")


def test_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    refused(folder, "leads out of the model folder")


def test_links_of_the_hub_cache_are_followed(tiny_model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--somebody--tiny"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, item in enumerate(tiny_model.iterdir()):
        shutil.copy(item, blobs / str(number))
        (snapshot / item.name).symlink_to(Path("../../blobs") / str(number))
    check_model_folder(snapshot)
    load_model(snapshot, torch.device("cpu"), torch.float32)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    refused(snapshot, "leads out")
