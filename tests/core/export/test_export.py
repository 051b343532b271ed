"""The whole job: what lies in the folder, and that a failure leaves nothing."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_help import Made, build_run, run_export
from safetensors.torch import load_file, save_file
from tiny_models import build_tiny

from core import files
from core.control import Control
from core.errors import AdapterError, Cancelled, CoreError, ModelError
from core.events import AdapterInspected, Progress, ReceiptReady, from_json, to_json
from core.export import export as export_module
from core.export.export import export
from core.export.inspect_adapter import inspect_adapter
from core.export.shards import ShardWriter
from core.jobs import Export, InspectAdapter
from core.lora.adapter_file import read_adapter
from core.lora.attach import load_adapter
from core.models.load import load_model, load_tokenizer


def only_the_run(folder: Path) -> bool:
    return sorted(path.name for path in folder.iterdir() if path.name != "home") == ["run"]


def test_a_merged_model_with_receipt_and_card(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    values, receipt, events = run_export(Export(made.run.path, "merged", out, dtype="bf16"))
    assert receipt is not None
    assert values["passed"] is True
    assert values["path"] == receipt.path == out
    assert values["bytes"] == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    stored = json.loads((out / "receipt.json").read_text())
    assert from_json(json.dumps({"event": "ReceiptReady", "receipt": stored})) == ReceiptReady(receipt)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    assert "Receipt: Passed" in card
    assert str(made.base) not in card
    progress = [event for event in events if isinstance(event, Progress) and event.stage == "Merging"]
    assert progress[-1].done == progress[-1].total == len(progress) - 1
    for event in events:
        assert from_json(to_json(event)) is not None
    assert load_tokenizer(out).chat_template == load_tokenizer(made.base).chat_template
    assert not list(out.rglob("*.tmp"))


def test_an_adapter_is_read_again(made: Made, tmp_path: Path) -> None:
    values, receipt, _ = run_export(Export(made.run.path, "adapter", tmp_path / "out"))
    assert values["passed"] is True
    assert receipt is not None
    assert receipt.largest_difference == 0.0
    found = read_adapter(tmp_path / "out")
    assert found.pairs.keys() == read_adapter(made.run.adapter).pairs.keys()
    assert "base_path" not in found.origin
    assert found.origin["base_fingerprint"]
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_calls_its_base_by_name_and_is_found_again(home: Path, tmp_path: Path) -> None:
    base = build_tiny("llama", tmp_path / "elsewhere" / "my-llama")  # in no library: only the run knows where
    made = build_run(home / "runs" / "first", base)
    origin = json.loads((made.run.adapter / "workbench.json").read_text())
    origin["base_origin"] = f"The folder {base} on this machine."
    (made.run.adapter / "workbench.json").write_text(json.dumps(origin))
    for form in ("peft", "compatible"):
        out = tmp_path / form
        run_export(Export(made.run.path, "adapter", out, form=form))  # type: ignore[arg-type]
        assert read_adapter(out).config["base_model_name_or_path"] == "my-llama"
        texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".md")]
        assert len(texts) >= 4
        assert not any(str(base) in text for text in texts)
        (card,) = [event.card for event in inspect_adapter(InspectAdapter(out), Control())
                   if isinstance(event, AdapterInspected)]
        assert [(match.path, match.match) for match in card.bases] == [(base, "same")]
        assert run_export(Export(out, "merged", tmp_path / f"merged-{form}"))[0]["passed"] is True
        assert str(base) not in (tmp_path / f"merged-{form}" / "README.md").read_text()


@pytest.mark.parametrize("token", [7, 386])  # one that the base has, and a new one
def test_the_code_on_the_card_loads_what_was_exported(made: Made, tmp_path: Path, token: int) -> None:
    path, config = made.run.adapter / "adapter_model.safetensors", made.run.adapter / "adapter_config.json"
    rows = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.full((1, 64), 0.5)}
    save_file(load_file(path) | rows, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"trainable_token_indices": [token]}))
    load_tokenizer(made.base).save_pretrained(made.run.adapter)
    run_export(Export(made.run.path, "adapter", tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    code = card.split("```python\n")[1].split("\n```")[0]
    assert ("resize_token_embeddings(387" in code) == (token == 386)
    names: dict[str, Any] = {}
    exec(code.replace("folder of the base model", str(made.base)).replace("this folder", str(tmp_path / "out")), names)
    ours = load_model(made.base, torch.device("cpu"), torch.float32)
    load_adapter(tmp_path / "out", ours)
    ids = torch.tensor([[20, token, 30]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits[..., :384], names["model"].eval()(ids).logits[..., :384], rtol=0,
                                   atol=1e-4)
    assert names["tokenizer"].encode("two") == load_tokenizer(made.base).encode("two")


def test_a_failed_receipt_is_never_success(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export_module.write_model_config

    def spoil(base: Path, folder: Path, dtype: str, untied: bool, vocabulary: int | None) -> None:
        write(base, folder, dtype, untied, vocabulary)
        shard = next(folder.glob("*.safetensors"))
        save_file({name: tensor * 1.5 for name, tensor in load_file(shard).items()}, shard, metadata={"format": "pt"})

    monkeypatch.setattr(export_module, "write_model_config", spoil)
    values, receipt, _ = run_export(Export(made.run.path, "merged", tmp_path / "out"))
    assert receipt is not None
    assert values["passed"] is receipt.passed is False
    assert json.loads((tmp_path / "out" / "receipt.json").read_text())["passed"] is False
    assert "NOT passed" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("stage", ["Merging", "Checking the written weights", "Comparing answers"])
def test_a_stop_leaves_nothing(stage: str, made: Made, tmp_path: Path) -> None:
    control = Control()
    with pytest.raises(Cancelled):
        for event in export(Export(made.run.path, "merged", tmp_path / "out"), control):
            if isinstance(event, Progress) and event.stage == stage and event.done >= min(1, event.total - 1):
                control.stop()
    assert only_the_run(tmp_path)


def test_a_full_disk_leaves_nothing(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = ShardWriter.write, []

    def full(self: ShardWriter, piece: object) -> int:
        calls.append(piece)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, piece)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(CoreError, match="disk became full"):
        run_export(Export(made.run.path, "merged", tmp_path / "out"))
    assert only_the_run(tmp_path)


def test_too_little_space_is_said_before_anything_is_written(made: Made, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(CoreError, match=r"needs [\d,]+ bytes, but only 1,000 bytes"):
        run_export(Export(made.run.path, "merged", tmp_path / "out"))
    assert only_the_run(tmp_path)


def test_a_folder_in_use_is_never_written_to(made: Made, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("used", "file"):
        with pytest.raises(CoreError, match=name):
            run_export(Export(made.run.path, "adapter", tmp_path / name))
    assert (tmp_path / "used" / "letter.txt").read_text() == "mine"


def test_an_empty_folder_is_filled_or_stays(made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    control = Control()
    control.stop()
    with pytest.raises(Cancelled):
        run_export(Export(made.run.path, "adapter", tmp_path / "out"), control)
    assert list((tmp_path / "out").iterdir()) == []
    run_export(Export(made.run.path, "adapter", tmp_path / "out", receipt=False))
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_a_base_that_changed_since_the_training_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in bases("qwen3").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    made = build_run(tmp_path / "run", base)
    shard = next(base.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for to in ("adapter", "merged"):
        with pytest.raises(ModelError, match="not the one that this adapter was trained on"):
            run_export(Export(made.run.path, to, tmp_path / "out"))  # type: ignore[arg-type]


def test_unknown_runs_and_checkpoints(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="not a run folder"):
        run_export(Export(tmp_path / "nowhere", "adapter", tmp_path / "out"))
    for name in ("step-000100", "../adapter", "/etc"):
        with pytest.raises(AdapterError, match="no checkpoint"):
            run_export(Export(made.run.path, "adapter", tmp_path / "out", checkpoint=name))


def test_a_checkpoint_is_exported_and_a_damaged_one_refused(made: Made, tmp_path: Path) -> None:
    folder = made.run.checkpoint(7)
    folder.mkdir(parents=True)
    for path in made.run.adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = {path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)} for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    job = Export(made.run.path, "adapter", tmp_path / "out", checkpoint="step-000007", receipt=False)
    run_export(job)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "workbench.json"]
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="damaged"):
        run_export(Export(made.run.path, "adapter", tmp_path / "again", checkpoint="step-000007"))


def test_licence_goes_along_and_program_files_do_not(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in bases("llama").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling_x.Model"}}))
    for name in ("LICENSE", "modeling_x.py", "README.md", "pytorch_model.bin.index.json", "workbench.json"):
        (base / name).write_text("{}")
    made = build_run(tmp_path / "run", base)
    run_export(Export(made.run.path, "merged", tmp_path / "out", receipt=False))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "LICENSE" in names
    assert not names & {"modeling_x.py", "pytorch_model.bin.index.json"}
    assert (tmp_path / "out" / "README.md").read_text() != "{}"
    assert "Merged from" in json.loads((tmp_path / "out" / "workbench.json").read_text())["origin"]
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
