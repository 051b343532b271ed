"""What happens between the command and the window: display, shared libraries, sub-commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import __main__ as start
from app import qt_libraries

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has such libraries")


@LINUX
@pytest.mark.parametrize(("environment", "plugin"), [
    ({"DISPLAY": ":0"}, "xcb"),
    ({"DISPLAY": ":0", "WAYLAND_DISPLAY": "wayland-0"}, "xcb"),
    ({"WAYLAND_DISPLAY": "wayland-0"}, "wayland"),
    ({"QT_QPA_PLATFORM": "offscreen"}, "offscreen"),
    ({"QT_QPA_PLATFORM": "wayland;xcb", "DISPLAY": ":0"}, "wayland"),
    ({"QT_QPA_PLATFORM": "vnc:size=800x600"}, "vnc"),
])
def test_the_plugin_that_qt_will_take(environment: dict[str, str], plugin: str):
    assert qt_libraries.has_display(environment)
    assert qt_libraries.platform_plugin(environment) == plugin


@LINUX
def test_no_display():
    assert not qt_libraries.has_display({})


@LINUX
def test_this_machine_has_what_the_tests_need():
    assert qt_libraries.missing_libraries("offscreen") == []


@LINUX
def test_libraries_that_are_not_found_are_named(monkeypatch: pytest.MonkeyPatch):
    report = ("\tlibEGL.so.1 => /lib/libEGL.so.1 (0x1)\n\tlibxcb-icccm.so.4 => not found\n"
              "\tlibxcb-cursor.so.0 => not found\n\tlibxcb-icccm.so.4 => not found\n")
    monkeypatch.setattr(qt_libraries.subprocess, "run",
                        lambda command, **_: subprocess.CompletedProcess(command, 0, stdout=report))
    missing = qt_libraries.missing_libraries("xcb")
    assert missing == ["libxcb-cursor.so.0", "libxcb-icccm.so.4"]
    assert qt_libraries.missing_packages(missing) == ["libxcb-cursor0", "libxcb-icccm4"]


@LINUX
def test_the_exact_command_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(qt_libraries.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = qt_libraries.advice(["libEGL.so.1", "libGL.so.1"])
    assert told == "Install them with:  sudo apt-get install -y libegl1 libgl1"


@LINUX
def test_without_apt_the_libraries_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(qt_libraries.shutil, "which", lambda name: None)
    assert "libEGL.so.1" in qt_libraries.advice(["libEGL.so.1"])


@LINUX
def test_who_may_not_install_is_told_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(qt_libraries, "missing_libraries", lambda plugin: ["libEGL.so.1"])
    monkeypatch.setattr(qt_libraries, "_administrator_prefix", lambda: None)
    monkeypatch.setattr(qt_libraries.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert qt_libraries.install("offscreen") == 1
    assert "sudo apt-get install -y libegl1" in capsys.readouterr().err


@LINUX
def test_who_may_install_gets_it_installed(monkeypatch: pytest.MonkeyPatch):
    answers = [["libEGL.so.1"], []]
    commands: list[list[str]] = []
    monkeypatch.setattr(qt_libraries, "missing_libraries", lambda plugin: answers.pop(0))
    monkeypatch.setattr(qt_libraries, "_administrator_prefix", lambda: ["sudo", "-n"])
    monkeypatch.setattr(qt_libraries.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(qt_libraries.subprocess, "run", lambda command, **_: (
        commands.append(command), subprocess.CompletedProcess(command, 0))[1])
    assert qt_libraries.install("offscreen") == 0
    assert len(commands) == 1
    assert commands[0][:2] == ["sudo", "-n"]
    assert commands[0][-1] == "libegl1"


@LINUX
def test_without_a_display_the_demo_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    given: list[list[str]] = []
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("core.__main__.main", lambda arguments: given.append(arguments) or 0)
    assert start.main([]) == 0
    assert given == [["demo"]]
    assert "no display" in capsys.readouterr().out


def test_missing_libraries_end_the_start_before_qt(monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(qt_libraries, "has_display", lambda: True)
    monkeypatch.setattr(qt_libraries, "missing_libraries", lambda plugin: ["libEGL.so.1"])
    assert start.main([]) == 1
    assert "libEGL.so.1" in capsys.readouterr().err


def test_a_sub_command_needs_no_qt(tmp_path: Path):
    code = ("import sys\nfrom app.__main__ import main\ncode = main(['models', '--json'])\n"
            "assert 'PySide6' not in sys.modules\nsys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 0, done.stderr
