"""The demo job with a tiny model: its events, its Result, its stop; batched answers against single ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core import demo as demo_module
from core.control import Control
from core.demo import demo, peak_rss_bytes, read_held_out
from core.errors import Cancelled, ConfigError, DataError
from core.events import Event, Planned, Progress, ReceiptReady, Result, StepDone, to_json
from core.models.load import load_model
from core.paths import SAMPLE_HELD_OUT
from core.training.batch_generate import CPU_ROWS, answer_batch
from core.training.decode import Answer, Sampling

NAMED = {"exact_match_before", "exact_match_after", "train_seconds", "tokens_per_second", "peak_rss_bytes", "run_dir",
         "receipt", "examples"}


def quick(model: Path) -> list[str]:
    return [f"model.path={json.dumps(str(model))}", "training.max_steps=2", "adapter.rank=2",
            "training.device=cpu", "training.evaluate_every=0"]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The events of one whole demo over ten held-out rows."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_WORKBENCH_HOME", str(folder / "home"))
        return list(demo(Control(), folder / "run", overrides=quick(tiny_model), heldout_limit=10))


def result_of(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], Result)
    assert not any(isinstance(event, Result) for event in events[:-1])
    return events[-1].values


def test_the_result_holds_exactly_the_named_values(finished: list[Event]) -> None:
    values = result_of(finished)
    assert set(values) == NAMED
    assert 0.0 <= values["exact_match_before"] <= 1.0
    assert 0.0 <= values["exact_match_after"] <= 1.0
    assert values["train_seconds"] > 0
    assert values["tokens_per_second"] > 0
    assert values["peak_rss_bytes"] > 50_000_000
    json.loads(to_json(finished[-1]))


def test_the_run_and_the_export_lie_on_the_disk(finished: list[Event]) -> None:
    values = result_of(finished)
    assert (Path(values["run_dir"]) / "adapter" / "adapter_model.safetensors").exists()
    assert values["receipt"]["passed"] is True
    assert (Path(values["receipt"]["path"]) / "adapter_model.safetensors").exists()


def test_the_events_of_its_parts_pass_through(finished: list[Event]) -> None:
    assert any(isinstance(event, Planned) for event in finished)
    assert len([event for event in finished if isinstance(event, StepDone)]) == 2
    assert any(isinstance(event, ReceiptReady) for event in finished)
    for stage in ("Scoring before training", "Scoring after training"):
        done = [event.done for event in finished if isinstance(event, Progress) and event.stage == stage]
        assert done == list(range(11))


def test_the_examples_are_spread_over_the_rows_and_tell_all_four_texts(finished: list[Event]) -> None:
    examples = result_of(finished)["examples"]
    rows = read_held_out(SAMPLE_HELD_OUT)
    assert [item["prompt"] for item in examples] == [rows[n].question for n in (0, 2, 4, 6, 8)]
    assert all(set(item) == {"prompt", "expected", "before", "after", "right"} for item in examples)


def test_a_stop_during_training_keeps_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    control, seen = Control(), list[Event]()
    with pytest.raises(Cancelled, match="kept in"):
        for event in demo(control, tmp_path / "run", overrides=quick(tiny_model)[:1], heldout_limit=2):
            seen.append(event)
            if isinstance(event, StepDone):
                control.stop()
    assert not any(isinstance(event, Result) for event in seen)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_a_stop_while_scoring_ends_at_once(tiny_model: Path, tmp_path: Path) -> None:
    control = Control()
    with pytest.raises(Cancelled):
        for event in demo(control, tmp_path / "run", overrides=quick(tiny_model), heldout_limit=2):
            if isinstance(event, Progress):
                control.stop()
    assert not (tmp_path / "run").exists()


def test_the_starter_is_prepared_first(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(control: Control) -> list[Event]:
        return [Progress("Preparing the starter", 1, 1), Result({"path": tiny_model})]

    monkeypatch.setattr(demo_module, "ensure_starter", prepared)
    stream = demo(Control(), tmp_path / "run", heldout_limit=1)
    assert next(stream) == Progress("Preparing the starter", 1, 1)
    following = next(stream)
    assert isinstance(following, Progress)
    assert following.stage == "Scoring before training"


def test_wrong_samples_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        next(demo(Control(), tmp_path / "run", sample=tmp_path))
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "a cup"}]}\n')
    with pytest.raises(DataError, match="line 1"):
        read_held_out(tmp_path / "rows.jsonl")


def test_batched_answers_equal_single_ones(tiny_model: Path) -> None:
    torch.manual_seed(5)
    model = load_model(tiny_model, torch.device("cpu"), torch.float32)
    prompts = [torch.randint(3, 300, (length,)).tolist() for length in (4, 19, 7, 7, 30, 1, 12, 9)]
    single = []
    for prompt in prompts:
        answer = Answer(model, prompt, Sampling(), frozenset(), 24)
        while not answer.ended:
            answer.step(Control())
        single.append(answer.tokens)
    # tokens that really occur early in some answers and late or never in others, so that rows end at different times
    stops = frozenset({single[0][2], single[3][7], single[5][11]})
    expected = [tokens[:next((n for n, token in enumerate(tokens) if token in stops), None)] for tokens in single]
    for batch_rows in (1, 3, 8):
        found = dict(answer_batch(model, prompts, stops, 24, Control(), batch_rows))
        assert [found[index] for index in range(len(prompts))] == expected


def test_no_prompts_give_no_answers(tiny_model: Path) -> None:
    model = load_model(tiny_model, torch.device("cpu"), torch.float32)
    assert list(answer_batch(model, [], frozenset({2}), 5, Control())) == []


def test_the_peak_of_memory_never_falls() -> None:
    before = peak_rss_bytes()
    block = bytearray(30_000_000)
    assert peak_rss_bytes() >= before
    del block
    assert peak_rss_bytes() >= before


def test_a_stop_is_asked_for_at_every_token(tiny_model: Path) -> None:
    class Counting(Control):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            super().check()

    control = Counting()
    model = load_model(tiny_model, torch.device("cpu"), torch.float32)
    prompts = [[5, 6, 7]] * (CPU_ROWS + 1)
    stream = answer_batch(model, prompts, frozenset(), 3, control)
    assert next(stream)[0] == 0
    assert control.checks == 3  # one for each token of the first rows: the last one has no place yet
    assert len(list(stream)) == CPU_ROWS and control.checks == 6
