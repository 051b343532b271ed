"""Engines that answer at once from a table, and what they answer; for the tests of the window."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QWidget

from core import events, jobs, records
from core.control import Control
from core.engine.protocol import Ready


def llama_modules(layers: int = 3, width: int = 64, inner: int = 128,
                  vocabulary: int = 384) -> list[records.ModuleInfo]:
    """The module table of a small Llama."""
    shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, 32), "self_attn.v_proj": (width, 32),
              "self_attn.o_proj": (width, width), "mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner),
              "mlp.down_proj": (inner, width)}
    table = [records.ModuleInfo("model.embed_tokens", "embed_tokens", -1, "Embedding", vocabulary, width,
                               vocabulary * width)]
    for layer in range(layers):
        for name, (inputs, outputs) in shapes.items():
            table.append(records.ModuleInfo(f"model.layers.{layer}.{name}", name.split(".")[-1], layer, "Linear",
                                           inputs, outputs, inputs * outputs))
    table.append(records.ModuleInfo("lm_head", "lm_head", -1, "Linear", width, vocabulary, vocabulary * width, True))
    return table


def make_card(**changes: Any) -> records.ModelCard:
    """A card of a small Llama."""
    values: dict[str, Any] = {
        "path": Path("tiny"), "name": "tiny-llama", "model_type": "llama", "architecture": "LlamaForCausalLM",
        "parameters": 200_000, "layers": 3, "hidden_size": 64, "intermediate_size": 128, "attention_heads": 4,
        "key_value_heads": 2, "vocabulary": 384, "context_length": 512, "dtype": "fp32", "bytes_on_disk": 800_000,
        "has_chat_template": True, "tied_embeddings": True, "origin": "made for a test", "fingerprint": "ab" * 32,
        "modules": tuple(llama_modules()),
    }
    return records.ModelCard(**{**values, **changes})


def make_scan(**changes: Any) -> events.DataScanned:
    """A scan of a hundred short conversations."""
    values: dict[str, Any] = {
        "files": ("train.jsonl",), "format": "chat", "rows": 100, "tokens": 5_000, "supervised_tokens": 2_000,
        "rows_cut": 0, "rows_without_supervision": 0, "longest": 90, "length_counts": (1, 4, 60, 35),
    }
    return events.DataScanned(**{**values, **changes})


ROW = records.RowPreview(
    0, (records.Message("user", "Two plums"), records.Message("assistant", '{"plum": 2}', trained=True)),
    (records.Token("<|im_start|>", False, True), records.Token("Two", False, False), records.Token("{", True, False)),
    False)


class FakeClient:
    """Stands for an engine: answers each kind of job from a table; a value may be events or a function."""

    def __init__(self) -> None:
        self.jobs: list[jobs.Job] = []
        self.started = self.closed = False
        self.state = "idle"
        self.hardware = Ready()
        entry = records.ModelEntry("starter", Path("models/tiny-llama"), "starter", 800_000, "ready")
        self.answers: dict[type, list[events.Event] | Callable[[Any, Control], Iterator[events.Event]]] = {
            jobs.ListModels: [events.ModelsListed((entry,))],
            jobs.InspectModel: [events.ModelInspected(make_card())],
            jobs.ScanData: [make_scan()],
            jobs.PreviewRows: [events.RowsPrepared(100, (ROW,))],
        }

    def start(self) -> None:
        self.started = True

    def run(self, job: jobs.Job, control: Control) -> Iterator[events.Event]:
        self.jobs.append(job)
        answer = self.answers.get(type(job), [])
        stream = iter(answer) if isinstance(answer, list) else answer(job, control)
        last: events.Event | None = None
        for last in stream:
            yield last
        if not isinstance(last, events.Result | events.Failed):
            yield events.Result({})

    def kill(self) -> None:
        self.state = "crashed"

    def close(self, keep_running: bool = True) -> None:
        self.closed = True

    def kinds(self) -> list[str]:
        """Names of the jobs that were asked for."""
        return [type(job).__name__ for job in self.jobs]


def texts_of(widget: Any) -> list[tuple[Any, str]]:
    """Every (widget, text) that Qt might read as markup, of a widget and all below it."""
    found = []
    for item in [widget, *widget.findChildren(QWidget)]:
        if isinstance(item, QLabel) and item.textFormat() != Qt.TextFormat.PlainText:
            found.append((item, item.text()))
        found += [(item, item.toolTip()), (item, item.whatsThis())]
    return found
