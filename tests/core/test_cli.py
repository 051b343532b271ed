"""The command line: what it prints, its exit codes, its errors, Ctrl-C; and the whole job on a tiny model."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_tiny

from core.__main__ import main
from core.cli import runner, texts
from core.cli.arguments import build_parser, byte_count, spread_overrides
from core.cli.screen import visible
from core.config import PrefixConfig, load_config
from core.control import Control
from core.errors import CoreError
from core.events import Event, MemoryMeasured, Note, Progress, Result, TokenGenerated
from core.jobs import ProbeMemory
from core.paths import runs_root
from core.runs.folder import RunFolder

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A small dataset of conversations."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"messages": [{"role": "user", "content": f"{n} teas"},
                                      {"role": "assistant", "content": f'{{"tea": {n}}}'}]}) for n in range(24)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def run_file(tmp_path: Path, tiny_model: Path, rows: Path) -> Path:
    """A run file for four quick steps."""
    path = tmp_path / "run.toml"
    assert main(["init", str(path), "--model", str(tiny_model), "--data", str(rows)]) == 0
    return path


QUICK = ["--set", "training.max_steps=4", "training.batch_size=2", "training.checkpoint_every=2", "training.dtype=fp32",
         "training.device=cpu"]


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json_lines(capsys.readouterr().out)[-1]


def run_with(command: Any, *, as_json: bool = False, text: Any = str) -> int:
    return runner.run_command(argparse.Namespace(command=command, json=as_json, json_rows="", text=text))


# what is typed

def test_one_set_takes_several_values_and_leaves_the_run_file():
    spread = spread_overrides(["train", "--set", "adapter.rank=16", "training.epochs=1", "run.toml", "--json"])
    assert spread == ["train", "--set=adapter.rank=16", "--set=training.epochs=1", "run.toml", "--json"]
    options = build_parser().parse_args(spread)
    assert options.overrides == ["adapter.rank=16", "training.epochs=1"]
    assert options.run_file == Path("run.toml")


def test_a_malformed_set_is_told_and_not_swallowed(run_file: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["estimate", str(run_file), "--set", "rank=16"]) == 1
    assert "section.name=value" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train", "run.toml", "--set"], ["fly"], [], ["export", "run"]])
def test_wrong_usage_ends_with_two(arguments: list[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(("text", "number"), [("2GB", 2 * 10**9), ("1.5 MB", 1_500_000), ("700", 700), ("3k", 3000)])
def test_sizes(text: str, number: int):
    assert byte_count(text) == number


def test_a_size_that_is_none():
    with pytest.raises(argparse.ArgumentTypeError, match="2GB"):
        byte_count("much")


# what is shown

def test_control_characters_do_not_reach_the_terminal():
    assert visible("a\x1b[2Jb\r\u202ec\n\td é 漢") == "a\\x1b[2Jb\\x0d\\x202ec\n\td é 漢"


def test_markup_of_foreign_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]):
    def command(options: argparse.Namespace, control: Control) -> Iterator[Event]:
        yield Note("[red]note[/red] :smile:")
        yield TokenGenerated("tuned", "[bold]answer[/bold]")
        yield Progress("[b]stage[/b]", 1, 2, "rows")
        yield Result({})

    assert run_with(command, text=lambda values: "[link=x]result[/link]") == 0
    output = capsys.readouterr()
    assert "[bold]answer[/bold]" in output.out
    assert "[link=x]result[/link]" in output.out
    assert "[red]note[/red] :smile:" in output.err
    assert "[b]stage[/b]" in output.err


def test_an_error_is_one_sentence_and_a_hint(capsys: pytest.CaptureFixture[str]):
    def command(options: argparse.Namespace, control: Control) -> Iterator[Event]:
        yield Note("begins")
        raise CoreError("It is broken.", "Mend it.")

    assert run_with(command) == 1
    error = capsys.readouterr().err
    assert error == "begins\nIt is broken.\nMend it.\n"


def test_an_error_in_json_is_the_last_line(capsys: pytest.CaptureFixture[str]):
    def command(options: argparse.Namespace, control: Control) -> Iterator[Event]:
        yield Note("begins")
        raise CoreError("It is broken.", "Mend it.")

    assert run_with(command, as_json=True) == 1
    last = last_json(capsys)
    assert (last["event"], last["message"], last["hint"]) == ("Failed", "It is broken.", "Mend it.")


def test_an_unexpected_error_shows_no_traceback_but_keeps_a_report(home: Path, capsys: pytest.CaptureFixture[str]):
    def command(options: argparse.Namespace, control: Control) -> Iterator[Event]:
        yield Note("begins")
        raise ZeroDivisionError("secret detail")

    assert run_with(command) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "secret detail" not in error
    reports = list((home / "logs").glob("report-*.txt"))
    assert len(reports) == 1
    assert "secret detail" in reports[0].read_text(encoding="utf-8")
    assert str(reports[0]) in error.replace("\n", "")


def test_a_receipt_that_did_not_pass_is_no_success():
    def command(options: argparse.Namespace, control: Control) -> Iterator[Event]:
        yield Result({"passed": False})

    assert run_with(command) == 1


def test_the_first_interrupt_lets_the_job_end_well(capsys: pytest.CaptureFixture[str]):
    def command(options: argparse.Namespace, control: Control) -> Iterator[Event]:
        os.kill(os.getpid(), signal.SIGINT)
        assert control.stop_requested
        yield Result({"outcome": "stopped"})

    before = signal.getsignal(signal.SIGINT)
    assert run_with(command, as_json=True) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert last_json(capsys) == {"event": "Result", "outcome": "stopped"}


def test_the_second_interrupt_ends_at_once(capsys: pytest.CaptureFixture[str]):
    def command(options: argparse.Namespace, control: Control) -> Iterator[Event]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield Result({})
        pytest.fail("the second interrupt was not obeyed")

    assert run_with(command) == 130
    assert "Aborted" in capsys.readouterr().err


def test_a_reader_that_goes_away_stops_the_job_and_keeps_its_end(tmp_path: Path):
    code = f"""
import argparse, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from core.cli.runner import run_command
from core.events import Note, Result

def command(options, control):
    while not control.stop_requested:
        yield Note("x" * 1000)
    Path({str(tmp_path / "ended")!r}).touch()
    yield Result({{}})

sys.exit(run_command(argparse.Namespace(command=command, json=True, json_rows="", text=str)))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, error = process.communicate(timeout=60)
    assert (tmp_path / "ended").exists()
    assert b"Traceback" not in error


# init, models

def test_init_writes_a_run_file_that_can_be_read(run_file: Path, rows: Path, tiny_model: Path):
    config = load_config(run_file)
    assert config.model.path == str(tiny_model)
    assert config.data.train == (str(rows),)


def test_init_without_data_takes_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["init", str(tmp_path / "run.toml"), "--json"]) == 0
    result = last_json(capsys)
    assert result["model"] == "starter"
    assert all(Path(file).is_file() for file in result["data"])


def test_init_replaces_nothing_unless_told(run_file: Path, rows: Path, capsys: pytest.CaptureFixture[str]):
    before = run_file.read_bytes()
    assert main(["init", str(run_file), "--data", str(rows)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert run_file.read_bytes() == before
    assert main(["init", str(run_file), "--data", str(rows), "--force"]) == 0
    assert run_file.read_bytes() != before


def test_init_refuses_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["init", str(tmp_path / "a.toml"), "--data", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl does not exist" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "a.toml"), "--model", str(tmp_path / "no-model")]) == 1
    assert not (tmp_path / "a.toml").exists()


def test_init_goes_on_from_an_adapter(run_file: Path, rows: Path, tiny_model: Path, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]):
    prefix = ["--set", "adapter.method=none", "prefix.length=3"]
    assert main(["train", str(run_file), "--run-dir", str(tmp_path / "run"), *QUICK, *prefix[1:]]) == 0
    after = tmp_path / "next.toml"
    told = ["init", str(after), "--from", str(tmp_path / "run"), "--data", str(rows)]
    assert main(told) == 0  # the base is where it was trained
    assert load_config(after).model.path == str(tiny_model)
    other = build_tiny("llama", tmp_path / "other", seed=3)
    assert main([*told, "--force", "--model", str(other)]) == 1
    assert "was not trained on" in capsys.readouterr().err
    (tmp_path / "run" / "adapter" / "workbench.json").unlink()
    config_file = tmp_path / "run" / "adapter" / "adapter_config.json"
    config_file.write_text(config_file.read_text().replace(str(tiny_model), "theirs"))
    assert main([*told, "--force"]) == 1
    assert "No model on this machine fits" in capsys.readouterr().err
    assert main([*told, "--force", "--model", str(tiny_model)]) == 0
    config = load_config(after)
    assert (config.model.path, config.prefix, config.adapter.method) == (
        str(tiny_model), PrefixConfig(length=3), "none")
    assert main(["train", str(after), "--run-dir", str(tmp_path / "next"), *QUICK, "--json"]) == 0
    assert "goes on from the adapter" in capsys.readouterr().out
    assert main(["init", str(tmp_path / "b.toml"), "--from", str(tmp_path / "gone")]) == 1
    assert not (tmp_path / "b.toml").exists()


def test_models_prints_one_object_a_line(home: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    (home / "models").mkdir(parents=True)
    (home / "models" / "tiny").symlink_to(tiny_model, target_is_directory=True)
    assert main(["models", "--json"]) == 0
    listed = json_lines(capsys.readouterr().out)
    assert {"name", "path"} <= set(listed[0])
    assert "event" not in listed[0]


# the whole job on a tiny model

def test_estimate_counts(run_file: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main(["estimate", str(run_file), "--set", "adapter.rank=4", "--json"]) == 0
    four = last_json(capsys)
    assert main(["estimate", str(run_file), "--set", "adapter.rank=8", "--json"]) == 0
    eight = last_json(capsys)
    assert eight["trainable_parameters"] == 2 * four["trainable_parameters"] > 0
    assert eight["adapter_bytes"] > four["adapter_bytes"]
    assert sum(eight["memory"].values()) == eight["memory_bytes"]
    assert main(["estimate", str(run_file)]) == 0
    assert f"{eight['trainable_parameters']:,}" in capsys.readouterr().out


def test_estimate_reckons_with_the_rows_that_are_there(run_file: Path, tiny_model: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]):
    def most_tokens(*changes: str) -> int:
        given = [part for change in changes for part in ("--set", change)]
        assert main(["estimate", str(run_file), "--json", "--set", "training.batch_size=1", *given]) == 0
        words = next(words for words in last_json(capsys)["assumptions"] if "computed at once" in words)
        return int("".join(filter(str.isdigit, words)))

    capsys.readouterr()
    assert 0 < most_tokens("data.max_length=500") < 100  # as long as the longest row
    assert most_tokens("data.max_length=500", "data.train=[]") == 500
    model = tmp_path / "with a damaged template"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text("{% for", encoding="utf-8")
    assert main(["estimate", str(run_file), "--set", f"model.path={json.dumps(str(model))}"]) == 0
    shown = capsys.readouterr()
    assert "The rows could not be read" in shown.out + shown.err


def test_estimate_is_corrected_by_a_probe(run_file: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch):
    def probe(job: ProbeMemory, control: Control) -> Iterator[Event]:
        yield MemoryMeasured(700_000_000, "cpu", 64, 0.1)
        yield Result({})

    monkeypatch.setattr("core.training.fit_probe.probe_memory", probe)
    capsys.readouterr()
    assert main(["estimate", str(run_file), "--probe", "--json"]) == 0
    found = last_json(capsys)
    assert found["memory_bytes"] == found["measured_bytes"] == sum(found["memory"].values()) == 700_000_000
    assert found["estimated_bytes"] != found["measured_bytes"]
    assert any("measured" in words for words in found["assumptions"])
    assert main(["estimate", str(run_file), "--probe"]) == 0
    assert "memory, measured" in capsys.readouterr().out


def test_check_data_measures(rows: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check-data", str(rows), "--model", str(tiny_model), "--json"]) == 0
    result = last_json(capsys)
    assert result["rows"] == 24
    assert 0 < result["supervised_tokens"] < result["tokens"]


def test_check_data_names_file_and_line(rows: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    with rows.open("a", encoding="utf-8") as file:
        file.write("{not json\n")
    assert main(["check-data", str(rows), "--model", str(tiny_model)]) == 1
    assert "rows.jsonl, line 25: this is not valid JSON" in capsys.readouterr().out


def test_train_chat_export_inspect(run_file: Path, tmp_path: Path, tiny_model: Path,
                                   capsys: pytest.CaptureFixture[str]):
    run_dir = tmp_path / "run"
    capsys.readouterr()
    assert main(["train", str(run_file), "--run-dir", str(run_dir), "--json", *QUICK]) == 0
    lines = json_lines(capsys.readouterr().out)
    steps = [line for line in lines if line["event"] == "StepDone"]
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    assert all(step["tokens"] > 0 and step["seconds"] > 0 for step in steps)
    assert lines[-1]["event"] == "Result"
    assert Path(lines[-1]["run_dir"]) == run_dir
    assert load_config(run_dir / "run.toml").training.max_steps == 4

    assert main(["chat", str(run_dir), "--prompt", "3 teas", "--max-new-tokens", "5", "--compare", "--json"]) == 0
    answer = last_json(capsys)
    assert answer["event"] == "Result"
    assert {"answer", "base_answer", "tokens", "seconds"} <= set(answer)
    assert main(["chat", str(tiny_model), "--prompt", "3 teas", "--max-new-tokens", "5", "--json"]) == 0
    assert last_json(capsys)["answer"] == answer["base_answer"]
    assert main(["chat", str(run_dir / "adapter"), "--prompt", "3 teas", "--max-new-tokens", "5", "--json"]) == 0
    assert last_json(capsys)["answer"] == answer["answer"]
    assert main(["chat", str(run_dir), "--prompt", "3 teas", "--max-new-tokens", "5", "--compare"]) == 0
    shown = capsys.readouterr().out
    assert shown == f"Base model:\n{visible(answer['base_answer'])}\n\nTuned model:\n{visible(answer['answer'])}\n\n"

    for kind in ("adapter", "merged"):
        out = tmp_path / kind
        assert main(["export", str(run_dir), "--to", kind, "--out", str(out), "--dtype", "fp32", "--json"]) == 0
        assert last_json(capsys)["event"] == "Result"
        assert list(out.glob("*.safetensors"))

    # an export does not tell where its base lies: it is named, or known from a run of this machine
    question = ["--prompt", "3 teas", "--max-new-tokens", "5", "--json"]
    assert main(["chat", str(tmp_path / "adapter"), *question]) == 1
    told = capsys.readouterr()
    assert "was not found" in told.out + told.err and "--adapter" in told.out + told.err
    assert main(["chat", str(tiny_model), "--adapter", str(tmp_path / "adapter"), *question]) == 0
    assert last_json(capsys)["answer"] == answer["answer"]
    shutil.copytree(run_dir, runs_root() / "known")
    assert main(["chat", str(tmp_path / "adapter"), *question]) == 0
    assert last_json(capsys)["answer"] == answer["answer"]

    assert main(["inspect", str(run_dir), "--json"]) == 0
    described = last_json(capsys)
    assert (described["kind"], described["state"], described["steps"]) == ("run", "finished", 4)
    assert main(["inspect", str(run_dir / "adapter"), "--json"]) == 0
    assert last_json(capsys)["rank"] == 8
    assert main(["inspect", str(tiny_model), "--json"]) == 0
    assert last_json(capsys)["layers"] == 3
    for place in (run_dir, run_dir / "adapter", tiny_model):
        assert main(["inspect", str(place)]) == 0


@pytest.mark.full
def test_a_stopped_run_can_be_resumed(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_dir = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "core", "train", str(run_file), "--run-dir", str(run_dir),
                                "--json", *QUICK, "training.max_steps=5000", "training.evaluate_every=0"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "StepDone":
            break
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    last = json.loads(rest.splitlines()[-1])
    assert (last["event"], last["outcome"]) == ("Result", "stopped")
    assert (run_dir / "adapter" / "adapter_model.safetensors").is_file()
    assert RunFolder(run_dir).state() == "stopped"
    total = 2 + last["steps"]
    config = load_config(run_dir / "run.toml")
    RunFolder(run_dir).write_config(config.model_copy(
        update={"training": config.training.model_copy(update={"max_steps": total})}))
    capsys.readouterr()
    assert main(["resume", str(run_dir), "--json"]) == 0
    lines = json_lines(capsys.readouterr().out)
    assert [line["step"] for line in lines if line["event"] == "StepDone"] == [total - 1, total]


def test_train_in_words(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(run_file), "--run-dir", str(tmp_path / "run"), *QUICK]) == 0
    output = capsys.readouterr()
    assert "Finished after 4 steps" in output.out
    assert str(tmp_path / "run") in output.out
    assert "tokens/s" in output.err
    assert "loss" in output.err


def test_the_demo_tells_before_and_after(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    quick = ["--rows", "5", "--set", f"model.path={tiny_model}", "training.max_steps=2", "training.batch_size=2",
             "training.evaluate_every=0", "data.max_length=64"]
    assert main(["demo", "--json", "--run-dir", str(tmp_path / "run"), *quick]) == 0
    last = last_json(capsys)
    assert {"exact_match_before", "exact_match_after", "train_seconds", "tokens_per_second", "peak_rss_bytes",
            "run_dir", "receipt"} <= set(last)
    words = texts.demo(last)
    assert "0% before, 0% after" in words
    assert words.count("Order:") == 5
    assert "✓ Passed." in words


@pytest.mark.parametrize(("arguments", "words"), [
    (["train", "none.toml"], "does not exist"),
    (["resume", "none"], "not a run folder"),
    (["inspect", "no-such-model"], "no-such-model"),
    (["chat", "no-such-model", "--prompt", "x"], "no-such-model"),
    (["export", "none", "--to", "merged", "--out", "out"], "none"),
])
def test_what_is_not_there_is_told_in_a_sentence(arguments: list[str], words: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert "unexpected" not in error
