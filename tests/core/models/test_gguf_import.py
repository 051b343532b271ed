"""GGUF files into the library: the right numbers, once, nothing half written, hostile files refused quickly."""

import json
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gguf_files import write_tiny_gguf

from core import files
from core.control import Control
from core.errors import Cancelled, ModelError
from core.events import Progress
from core.jobs import ImportGguf
from core.models import gguf_import
from core.models.gguf_header import read_gguf_header
from core.models.inspect import read_card
from core.models.load import load_model, load_tokenizer
from core.paths import models_root


@pytest.fixture(scope="module")
def gguf_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny-Q8_0.gguf"
    write_tiny_gguf(tiny_model, file)
    return file


def left_over() -> list[str]:
    return [item.name for item in models_root().iterdir()] if models_root().exists() else []


def test_import_gives_the_weights_tokenizer_and_template(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny-Q8_0.gguf"
    stored = write_tiny_gguf(tiny_model, file)
    events = list(gguf_import.import_gguf(ImportGguf(file), Control()))
    folder = events[-1].values["path"]
    stages = {event.stage for event in events if isinstance(event, Progress)}
    assert {"Reading the file", "Dequantising", "Saving"} <= stages

    saved = load_file(folder / "model.safetensors")
    assert set(saved) == set(stored)
    for name, value in stored.items():
        assert saved[name].dtype == torch.bfloat16
        assert torch.equal(saved[name], torch.from_numpy(value.copy()).bfloat16()), name

    tokenizer, original = load_tokenizer(folder), load_tokenizer(tiny_model)
    text = "<|im_start|>user\nGrößer than 12 pizzas, d'accord?<|im_end|>\n"
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.chat_template == original.chat_template
    model = load_model(folder, torch.device("cpu"), torch.float32)
    assert model.generation_config.eos_token_id == [0, 2]  # end of text, end of turn
    assert model.generation_config.pad_token_id == 0
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["rope_parameters"]["rope_theta"] == 10000.0
    card = read_card(folder)
    assert card.has_chat_template and card.dtype == "bf16" and "tiny-Q8_0.gguf (Q8_0" in card.origin
    assert all(item.stat().st_mode & 0o044 for item in folder.iterdir())

    again = list(gguf_import.import_gguf(ImportGguf(file), Control()))
    assert again[-1].values["path"] == folder and left_over() == ["tiny-Q8_0"]


def test_stop_kills_the_child_and_leaves_nothing(gguf_file: Path) -> None:
    control = Control()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        for event in gguf_import.import_gguf(ImportGguf(gguf_file), control):
            if isinstance(event, Progress) and event.stage == "Reading the file":
                continue
            control.stop()
    assert left_over() == []
    assert time.monotonic() - start < 60


@pytest.mark.full  # as a stop does, which is tested always
def test_closing_the_stream_leaves_nothing(gguf_file: Path) -> None:
    stream = gguf_import.import_gguf(ImportGguf(gguf_file), Control())
    for event in stream:
        if isinstance(event, Progress) and event.stage != "Reading the file":
            break
    stream.close()  # type: ignore[attr-defined]
    assert left_over() == []


def test_child_that_takes_too_long_is_ended(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_import, "_limits", lambda header: (0.3, 2**40))
    with pytest.raises(ModelError, match="could not be converted within"):
        list(gguf_import.import_gguf(ImportGguf(gguf_file), Control()))
    assert left_over() == []


def test_child_that_takes_too_much_memory_is_ended(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_import, "_limits", lambda header: (60.0, 10_000_000))
    with pytest.raises(ModelError, match="bytes of memory"):
        list(gguf_import.import_gguf(ImportGguf(gguf_file), Control()))


def test_too_little_room_is_said_in_bytes(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(ModelError, match="1,000 are free"):
        list(gguf_import.import_gguf(ImportGguf(gguf_file), Control()))
    assert left_over() == []


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _header(tensors: int = 0, pairs: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


_ARCHITECTURE = _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
_PADDING = bytes(64)


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HOSTILE = {
    "empty": b"",
    "not gguf": b"PK\x03\x04" + _PADDING,
    "version 1": _header(version=1) + _ARCHITECTURE + _PADDING,
    "big endian": _header(version=3 << 24) + _PADDING,
    "billions of tensors": _header(tensors=2**62) + _ARCHITECTURE + _PADDING,
    "billions of pairs": _header(pairs=2**62) + _PADDING,
    "endless text": _header() + struct.pack("<Q", 2**60) + _PADDING,
    "long value": _header() + _text("a") + struct.pack("<IQ", 8, 2**40) + _PADDING,
    "endless list": _header() + _text("a") + struct.pack("<IIQ", 9, 8, 2**50) + _PADDING,
    "list of empty texts": _header() + _text("a") + struct.pack("<IIQ", 9, 8, 3_999_999) + _PADDING,
    "list in a list": _header() + _text("a") + struct.pack("<IIQ", 9, 9, 3) + _PADDING,
    "unknown value type": _header() + _text("a") + struct.pack("<I", 77) + _PADDING,
    "not utf-8": _header() + struct.pack("<Q", 2) + b"\xff\xfe" + _PADDING,
    "key twice": _header(pairs=2) + _ARCHITECTURE * 2 + _PADDING,
    "no architecture": _header() + _text("a") + struct.pack("<IB", 0, 1) + _PADDING,
    "no tensors": _header() + _ARCHITECTURE + _PADDING,
    "many dimensions": _header(tensors=1) + _ARCHITECTURE + _tensor("x", (1,) * 40, 0, 0) + _PADDING,
    "giant tensor": _header(tensors=1) + _ARCHITECTURE + _tensor("x", (2**32, 2**31), 0, 0) + _PADDING,
    "unknown number type": _header(tensors=1) + _ARCHITECTURE + _tensor("x", (32,), 999, 0) + _PADDING,
    "cut off": _header(tensors=1) + _ARCHITECTURE + _tensor("x", (4096,), 0, 0) + _PADDING,
    "overlap": _header(tensors=2) + _ARCHITECTURE + _tensor("x", (8,), 0, 0) + _tensor("y", (8,), 0, 0) + bytes(512),
    "same name": _header(tensors=2) + _ARCHITECTURE + _tensor("x", (8,), 0, 0) + _tensor("x", (8,), 0, 32)
    + bytes(512),
    "offset beyond": _header(tensors=1) + _ARCHITECTURE + _tensor("x", (8,), 0, 2**60) + _PADDING,
    "one part of three": _header(tensors=1, pairs=2) + _ARCHITECTURE + _text("split.count")
    + struct.pack("<IH", 2, 3) + _tensor("x", (8,), 0, 0) + bytes(512),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_is_refused_at_once(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(HOSTILE[name])
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        list(gguf_import.import_gguf(ImportGguf(file), Control()))
    assert time.monotonic() - start < 5
    assert "\n" not in caught.value.message and caught.value.message.endswith(".")
    assert left_over() == []


def test_every_cut_of_a_real_file_is_refused(gguf_file: Path, tmp_path: Path) -> None:
    content = gguf_file.read_bytes()
    file = tmp_path / "cut.gguf"
    for length in [*range(0, 2000, 37), *range(2000, len(content), 20_011)]:
        file.write_bytes(content[:length])
        with pytest.raises(ModelError):
            read_gguf_header(file)
    file.write_bytes(content)
    assert read_gguf_header(file).parameters == 135_616


def test_file_that_transformers_refuses_gives_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    architecture = _text("general.architecture") + struct.pack("<I", 8) + _text("no-such-kind")
    file.write_bytes(_header(tensors=1) + architecture + _tensor("x", (8,), 0, 0) + bytes(512))
    with pytest.raises(ModelError, match=r"odd.gguf \(no-such-kind\) could not be converted"):
        list(gguf_import.import_gguf(ImportGguf(file), Control()))
    assert left_over() == []


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can not be read"):
        list(gguf_import.import_gguf(ImportGguf(tmp_path / "none.gguf"), Control()))
