"""What `cluster` writes: a run file, a SkyPilot task and a Slurm script that name the same run."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from core.__main__ import main
from core.cluster import Machines, write_cluster_files
from core.config import RunConfig, load_config, parse_config
from core.errors import CoreError


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run with paths that need quoting."""
    data, model = tmp_path / "my 'rows': #1.jsonl", tmp_path / "the model"
    data.write_text("{}\n")
    model.mkdir()
    return parse_config({"model": {"path": str(model)}, "data": {"train": [str(data)]},
                         "training": {"device": "all", "batch_size": 64}})


def test_the_sky_task_says_what_the_machines_need(config: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "out: of #here"
    run_file, task_file, _ = write_cluster_files(config, "Orders, 2nd try", Machines(2, 4, "H100"), out)
    task = yaml.safe_load(task_file.read_text())
    assert task["name"] == "orders-2nd-try"
    assert (task["num_nodes"], task["resources"]) == (2, {"accelerators": "H100:4"})
    assert task["workdir"] == str(out)
    for path in (config.model.path, config.data.train[0]):
        assert task["file_mounts"][path] == path
    assert (Path(task["file_mounts"]["~/lora-workbench"]) / "pyproject.toml").is_file()
    assert task["setup"].strip() == "pip install ~/lora-workbench"
    assert "-m core train run.toml --run-dir runs/orders-2nd-try" in task["run"]
    assert '--nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK"' in task["run"]
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False).returncode == 0
    kept = load_config(run_file)
    assert kept.training.device == "auto"
    assert kept.data == config.data
    assert kept.training.batch_size == 64


def test_the_slurm_script_runs_one_launcher_on_each_node(config: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "it's here"
    script = write_cluster_files(config, "a", Machines(3, 2), out)[2]
    text = script.read_text()
    assert "@" not in text.replace("TERM@120", "")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    options = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in text.splitlines()
                   if line.startswith("#SBATCH"))
    assert (options["nodes"], options["gpus-per-node"], options["ntasks-per-node"]) == ("3", "2", "1")
    assert options["cpus-per-task"] == "8"  # else all processes of a node would share one core
    assert f"cd {shlex.quote(str(out))}" in text
    assert "--nproc-per-node 2 " in text
    assert "-m core train run.toml --run-dir runs/a" in text


def test_a_model_of_the_library_is_named_by_its_folder_and_the_starter_by_its_name(home: Path, tmp_path: Path) -> None:
    (home / "models" / "mine").mkdir(parents=True)
    for name, path in (("mine", str(home / "models" / "mine")), ("starter", "starter")):
        config = parse_config({"model": {"path": name}})
        run_file, task_file, _ = write_cluster_files(config, "1", Machines(), tmp_path / name)
        assert load_config(run_file).model.path == path
        task = yaml.safe_load(task_file.read_text())
        assert (path in task["file_mounts"]) == (name == "mine")
        assert task["name"] == "run-1"


def test_the_command_writes_the_files_and_replaces_none(config: RunConfig, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    run_file, *_ = write_cluster_files(config, "a", Machines(), tmp_path / "first")
    command = ["cluster", str(run_file), "--out", str(tmp_path / "second"), "--nodes", "2", "--set",
               "training.batch_size=32"]
    assert main(command) == 0
    assert "sbatch" in capsys.readouterr().out
    assert load_config(tmp_path / "second" / "run.toml").training.batch_size == 32
    assert yaml.safe_load((tmp_path / "second" / "task.yaml").read_text())["num_nodes"] == 2
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(CoreError, match="exists already"):
        write_cluster_files(config, "a", Machines(), tmp_path / "second")
    with pytest.raises(CoreError, match="not the name of a GPU"):
        write_cluster_files(config, "a", Machines(gpu="A100: 8"), tmp_path / "third")
    assert not (tmp_path / "third").exists()
