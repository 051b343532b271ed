"""Downloads against a stand-in for the hub."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save

sys.path.insert(0, str(Path(__file__).resolve().parent))

from hub_stand_in import COMMIT, StandIn, files_of, serve

from core import files
from core.control import Control
from core.errors import Cancelled, CoreError, ModelError
from core.events import Progress, Result
from core.jobs import DownloadModel
from core.models import hub
from core.models.card_file import read_card_file
from core.models.library import list_models
from core.models.safety import check_model_folder
from core.paths import models_root

REPO = "somebody/tiny-llama"


@pytest.fixture
def stand_in(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    content = files_of(tiny_model) | {"README.md": b"# a model", "pytorch_model.bin": b"\x80\x02pickle",
                                      "modeling_tiny.py": b"raise SystemExit", "onnx/model.safetensors": b"x"}
    with serve(StandIn(REPO, content)) as server:
        yield server


def fetch(server: StandIn, control: Control | None = None) -> list:
    return list(hub.download_model(DownloadModel(REPO), control or Control(), server.endpoint))


def left_over() -> list[str]:
    return [item.name for item in models_root().iterdir()] if models_root().exists() else []


def test_model_arrives_whole_and_is_listed(stand_in: StandIn, tiny_model: Path) -> None:
    events = fetch(stand_in)
    result = events[-1]
    assert isinstance(result, Result)
    folder = result.values["path"]
    assert folder == models_root() / "tiny-llama"
    check_model_folder(folder)
    assert (folder / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    assert not {"README.md", "pytorch_model.bin", "modeling_tiny.py", "onnx"} & {i.name for i in folder.iterdir()}
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].done == progress[-1].total and progress[-1].unit == "bytes"
    card = read_card_file(folder)
    assert card is not None and REPO in card.origin and card.source_name == f"{REPO}@{COMMIT}"
    assert [(entry.name, entry.state) for entry in list_models() if entry.origin == "library"] == [
        ("tiny-llama", "ready")]
    assert left_over() == ["tiny-llama"]


def test_same_model_again_is_not_fetched_again(stand_in: StandIn) -> None:
    fetch(stand_in)
    before = len(stand_in.requests)
    assert fetch(stand_in)[-1].values["name"] == "tiny-llama"
    assert len(stand_in.requests) == before + 1  # only what it is, not its files


def test_a_broken_line_is_gone_on_with(stand_in: StandIn) -> None:
    stand_in.cut_after, stand_in.cuts_left = 100_000, 3
    fetch(stand_in)
    ranges = [span for path, span, _ in stand_in.requests if path == "/cdn/model.safetensors"]
    assert ranges[0] == "" and all(span.startswith("bytes=") for span in ranges[1:]) and len(ranges) == 4


def test_stopped_download_goes_on_later(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_TELL_SECONDS", 0.0)
    control = Control()
    with pytest.raises(Cancelled):
        for event in hub.download_model(DownloadModel(REPO), control, stand_in.endpoint):
            if isinstance(event, Progress) and "safetensors" in event.stage:
                control.stop()
    assert list_models() == [] or all(entry.origin == "starter" for entry in list_models())
    fetch(stand_in)
    spans = [span for path, span, _ in stand_in.requests if path == "/cdn/model.safetensors"]
    assert len(spans) == 2 and spans[1].startswith("bytes=")


def test_the_token_stays_with_the_hub(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(stand_in)
    asked = {(path.startswith("/cdn/"), token) for path, _, token in stand_in.requests}
    assert (False, "Bearer hf_secret") in asked
    assert (True, "Bearer hf_secret") not in asked


def test_spoiled_file_is_refused_and_not_kept(stand_in: StandIn) -> None:
    stand_in.spoiled = "model.safetensors"
    with pytest.raises(ModelError, match="did not arrive"):
        fetch(stand_in)
    stand_in.spoiled = ""
    fetch(stand_in)


@pytest.mark.parametrize(("code", "words"), [
    ("RepoNotFound", "has no model"), ("GatedRepo", "accepted their terms"), ("Other", "HTTP 401")])
def test_refusals_of_the_hub(stand_in: StandIn, code: str, words: str) -> None:
    stand_in.error_code = code
    with pytest.raises(ModelError, match=words):
        fetch(stand_in)


def test_unknown_revision(stand_in: StandIn) -> None:
    with pytest.raises(ModelError, match="no revision 'nope'"):
        list(hub.download_model(DownloadModel(REPO, "nope"), Control(), stand_in.endpoint))


def test_hub_out_of_reach(stand_in: StandIn) -> None:
    with pytest.raises(ModelError, match="can not be reached"):
        list(hub.download_model(DownloadModel(REPO), Control(), "http://127.0.0.1:9"))


def test_offline_switch(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="switched off"):
        fetch(stand_in)


@pytest.mark.parametrize("repo_id", ["", "../x", "a/b/c", "a b", "-x/y", "http://x/y"])
def test_impossible_names(stand_in: StandIn, repo_id: str) -> None:
    with pytest.raises(ModelError, match="no name of a model"):
        list(hub.download_model(DownloadModel(repo_id), Control(), stand_in.endpoint))


def sharded(server: StandIn, tiny_model: Path, names: tuple[str, str]) -> None:
    """The stand-in's model in two parts of these names, with their index."""
    tensors = load_file(tiny_model / "model.safetensors")
    places = {tensor: names[number % 2] for number, tensor in enumerate(sorted(tensors))}
    del server.files["model.safetensors"]
    for name in names:
        server.files[name] = save({tensor: tensors[tensor] for tensor in places if places[tensor] == name},
                                  {"format": "pt"})
    server.files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()


def test_shards_have_the_names_that_the_index_gives_them(stand_in: StandIn, tiny_model: Path) -> None:
    names = ("model.safetensors-00001-of-00002.safetensors", "rest.safetensors")
    sharded(stand_in, tiny_model, names)
    stand_in.files["consolidated.safetensors"] = b"the same once more in another layout"
    folder = fetch(stand_in)[-1].values["path"]
    check_model_folder(folder)
    assert {item.name for item in folder.glob("*.safetensors")} == set(names)
    assert left_over() == ["tiny-llama"]


def test_shard_that_was_never_uploaded_is_named(stand_in: StandIn, tiny_model: Path) -> None:
    sharded(stand_in, tiny_model, ("a.safetensors", "b.safetensors"))
    del stand_in.files["b.safetensors"]
    with pytest.raises(ModelError, match=r"has no b\.safetensors, which"):
        fetch(stand_in)
    assert left_over() == []


def test_pickle_only_is_refused_before_anything_is_fetched(stand_in: StandIn) -> None:
    del stand_in.files["model.safetensors"], stand_in.files["onnx/model.safetensors"]
    with pytest.raises(ModelError, match="pickle"):
        fetch(stand_in)
    assert left_over() == []


def test_unsafe_model_does_not_enter_the_library(stand_in: StandIn) -> None:
    stand_in.files["config.json"] = b'{"model_type": "llama", "text_config": {"trust_remote_code": true}}'
    with pytest.raises(ModelError, match="program code"):
        fetch(stand_in)
    assert left_over() == []


def test_more_bytes_than_announced(stand_in: StandIn) -> None:
    stand_in.announced["model.safetensors"] = 1000
    with pytest.raises(ModelError, match="more bytes"):
        fetch(stand_in)


def test_too_little_room_is_said_in_bytes(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(CoreError, match="1,000 are free"):
        fetch(stand_in)
    assert left_over() == []
