"""The shared libraries of the system that Qt needs: found out before Qt is started.

Qt itself comes with PySide6, but its Linux build links against libraries that a bare Debian or
Ubuntu does not have; without them Qt ends the process with a message few people can read.
Nothing here imports Qt. `python -m app.qt_libraries --install` is what `make run` calls.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# What PySide6-Essentials links against outside its own folder, and the Debian/Ubuntu package of each.
PACKAGES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libGLX.so.0": "libgl1",
    "libX11.so.6": "libx11-6",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libgssapi_krb5.so.2": "libgssapi-krb5-2",
    "libwayland-client.so.0": "libwayland-client0",
    "libwayland-cursor.so.0": "libwayland-cursor0",
    "libxcb.so.1": "libxcb1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-glx.so.0": "libxcb-glx0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libz.so.1": "zlib1g",
    "libzstd.so.1": "libzstd1",
}
FONT_PACKAGE = "fonts-dejavu-core"
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
                "/run/current-system/sw/share/X11/fonts")


def has_display(environment: Mapping[str, str] = os.environ) -> bool:
    """True where a window can be shown (or Qt was told which platform to use)."""
    if not sys.platform.startswith("linux"):
        return True
    return any(environment.get(name) for name in ("QT_QPA_PLATFORM", "WAYLAND_DISPLAY", "DISPLAY"))


def platform_plugin(environment: Mapping[str, str] = os.environ) -> str:
    """The Qt platform plugin that will be loaded: xcb, wayland, offscreen or another by its name."""
    chosen = environment.get("QT_QPA_PLATFORM", "").split(";")[0].split(":")[0]
    if chosen:
        return chosen
    if environment.get("WAYLAND_DISPLAY") and not environment.get("DISPLAY"):
        return "wayland"
    return "xcb" if environment.get("DISPLAY") else "offscreen"


def missing_libraries(plugin: str) -> list[str]:
    """Names of the shared libraries that this Qt plugin and the widgets need and the system lacks."""
    folder = _pyside_folder()
    if not sys.platform.startswith("linux") or folder is None or shutil.which("ldd") is None:
        return []
    binaries = [folder / "Qt" / "plugins" / "platforms" / f"libq{plugin}.so", *folder.glob("QtWidgets.*.so")]
    command = ["ldd", *(str(path) for path in binaries if path.exists())]
    if len(command) == 1:
        return []
    report = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return sorted({line.split()[0] for line in report.splitlines() if line.endswith("=> not found")})


def missing_packages(libraries: list[str]) -> list[str]:
    """The Debian packages that hold these libraries, and a font where the system has none."""
    return sorted({PACKAGES[name] for name in libraries if name in PACKAGES})


def advice(libraries: list[str]) -> str:
    """What to do about missing libraries: the exact command, or their names on other systems."""
    unknown = [name for name in libraries if name not in PACKAGES]
    if shutil.which("apt-get") is None or unknown:
        return "Install the packages of your system that hold " + ", ".join(libraries) + "."
    return "Install them with:  " + _shell_line(missing_packages(libraries))


def has_fonts() -> bool:
    """True if any scalable font is installed; Qt brings none, and a window without one shows no text."""
    for name in FONT_FOLDERS:
        folder = Path(name).expanduser()
        if folder.is_dir() and any(path.suffix in (".ttf", ".otf", ".ttc", ".pfb") for path in folder.rglob("*")):
            return True
    return False


def install(plugin: str) -> int:
    """Install what is missing where the user may; else print the command. Returns the exit code."""
    libraries = missing_libraries(plugin)
    packages = missing_packages(libraries)
    if sys.platform.startswith("linux") and plugin != "offscreen" and not has_fonts():
        packages.append(FONT_PACKAGE)
    if not libraries and not packages:
        return 0
    prefix = _administrator_prefix()
    if shutil.which("apt-get") is None or prefix is None:
        print("The window needs shared libraries that this system lacks: " + ", ".join(libraries or packages) + ".",
              file=sys.stderr)
        print(advice(libraries) if libraries else "Install:  " + _shell_line(packages), file=sys.stderr)
        return 1 if libraries else 0
    print("Installing what Qt needs: " + " ".join(packages), flush=True)
    _apt_get(prefix, packages)
    still_missing = missing_libraries(plugin)
    if still_missing:
        print("These shared libraries are still missing: " + ", ".join(still_missing) + ".", file=sys.stderr)
        print(advice(still_missing), file=sys.stderr)
    return 1 if still_missing else 0


def _apt_get(prefix: list[str], packages: list[str]) -> None:
    command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y",
               "--no-install-recommends", *packages]
    if packages and subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        # the lists of a fresh system are empty or old
        subprocess.run([*prefix, "apt-get", "update"], stdout=subprocess.DEVNULL, check=False)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def _administrator_prefix() -> list[str] | None:
    """What to put before a command to run it as root without a question; None where that can not be."""
    if sys.platform == "win32":
        return None
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]  # -n: never ask for a password
    if shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode == 0:
        return sudo
    return None


def _shell_line(packages: list[str]) -> str:
    root = sys.platform != "win32" and os.geteuid() == 0
    return ("" if root else "sudo ") + "apt-get install -y " + " ".join(packages)


def _pyside_folder() -> Path | None:
    found = importlib.util.find_spec("PySide6")  # looks for it without importing it
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0]) if places else None


def main() -> int:
    """Check, and with --install also install, what the window needs on this system."""
    parser = argparse.ArgumentParser(prog="python -m app.qt_libraries", description=main.__doc__)
    parser.add_argument("--install", action="store_true", help="install by apt-get where the user may")
    parser.add_argument("--plugin", help="Qt platform plugin (default: the one that the window will use)")
    options = parser.parse_args()
    if options.plugin is None and not has_display():
        return 0  # no window will be opened
    plugin = options.plugin or platform_plugin()
    if options.install:
        return install(plugin)
    libraries = missing_libraries(plugin)
    if libraries:
        print(", ".join(libraries) + "\n" + advice(libraries))
    return 1 if libraries else 0


if __name__ == "__main__":
    sys.exit(main())
