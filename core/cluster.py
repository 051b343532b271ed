"""A run file for other machines: the torchrun command, a SkyPilot task and a Slurm script, as plain files."""

import json
import re
import shlex
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import core
from core import files
from core.config import STARTER, RunConfig, dump_config
from core.errors import CoreError
from core.paths import RESOURCES, models_root

RUN_FILE, TASK_FILE, JOB_FILE = "run.toml", "task.yaml", "job.sbatch"
_GPU_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_CPUS_FOR_A_GPU = 4  # one computes, the others read and tokenise
_TEMPLATES = RESOURCES / "cluster"


@dataclass(frozen=True)
class Machines:
    """How many machines, with how many GPUs of which kind each; the kind is named as SkyPilot names it."""

    nodes: int = 1
    gpus: int = 8
    gpu: str = "A100"


def torchrun_command(run_file: str, gpus: int) -> list[str]:
    """What trains a run file on several GPUs of one machine."""
    return ["torchrun", "--standalone", "--nproc-per-node", str(gpus), "-m", "core", "train", run_file]


def write_cluster_files(config: RunConfig, name: str, machines: Machines, out: Path) -> list[Path]:
    """Write run.toml, task.yaml and job.sbatch into the folder `out`, which is made; returns their paths.

    Raises:
        CoreError: one of them is there already, or the kind of GPU is no name.
        OSError: the folder can not be written.
    """
    if not _GPU_NAME.fullmatch(machines.gpu):
        raise CoreError(f"{machines.gpu!r} is not the name of a GPU.", "For example: A100 or H100.")
    out = out.expanduser().absolute()
    paths = [out / file for file in (RUN_FILE, TASK_FILE, JOB_FILE)]
    for path in paths:
        if path.exists():
            raise CoreError(f"{path} exists already.", "Choose another folder, or remove it first.")
    config = _for_elsewhere(config)
    words = _words(config, _plain_name(name), machines, out)
    files.write_text(paths[0], dump_config(config))
    for path in paths[1:]:
        text = (_TEMPLATES / path.name).read_text(encoding="utf-8")
        files.write_text(path, re.sub(r"@([A-Z_]+)@", lambda found: words[found[1]], text))
    return paths


def _for_elsewhere(config: RunConfig) -> RunConfig:
    """With the model by its folder, and every process on the GPU with its number."""
    model, folder = config.model.path, models_root() / config.model.path
    if model not in ("", STARTER) and not Path(model).is_absolute() and folder.is_dir():
        model = str(folder.absolute())
    return config.model_copy(update={
        "model": config.model.model_copy(update={"path": model}),
        "training": config.training.model_copy(update={"device": "auto"}),
    })


def _words(config: RunConfig, name: str, machines: Machines, out: Path) -> dict[str, str]:
    """What stands in the templates. A string of JSON is one of YAML, too."""
    mounts = [f"  {json.dumps(path)}: {json.dumps(path)}" for path in _named_paths(config)]
    return {"NAME": name, "RUN": f"runs/{name}", "NODES": str(machines.nodes), "GPUS": str(machines.gpus),
            "CPUS": str(_CPUS_FOR_A_GPU * machines.gpus), "GPU": machines.gpu, "FOLDER": json.dumps(str(out)),
            "SHELL_FOLDER": shlex.quote(str(out)), "MOUNTS": "\n".join([*mounts, *_source_mount()]) or "  {}",
            "INSTALL": _install()}


def _named_paths(config: RunConfig) -> list[str]:
    """Files and folders of this machine that the run reads."""
    found = [*config.data.train, config.model.path, getattr(config.adapter, "start_from", "")]
    return sorted({path for path in found if path and Path(path).is_absolute()})


def _source() -> Path | None:
    """The folder from which this program can be installed, where it runs from one."""
    root = Path(core.__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def _source_mount() -> list[str]:
    source = _source()
    return [] if source is None else [f"  ~/lora-workbench: {json.dumps(str(source))}"]


def _install() -> str:
    if _source() is None:
        return f"pip install lora-workbench=={metadata.version('lora-workbench')}"
    return "pip install ~/lora-workbench"


def _plain_name(name: str) -> str:
    """A name that clusters take: small letters, digits and hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-")
    return plain if plain[:1].isalpha() else f"run-{plain}".rstrip("-")
