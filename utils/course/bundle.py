"""Writes what a set-up needs to a folder, for machines without a network.

    make bundle BUNDLE=/media/stick BUNDLE_FOR="linux macos" BUNDLE_PYTHON="3.11 3.12"

There, `make course BUNDLE=/media/stick` installs the packages, and the laptop's model.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
GLIBC = [f"manylinux_2_{n}" for n in range(17, 29)]  # Linux of 2018 or newer
# By its name here: what Python calls a system, what uv does, and its wheels.
SYSTEMS = {
    "linux": ("Linux-x86_64", "x86_64-manylinux_2_28", GLIBC),
    "linux-arm": ("Linux-aarch64", "aarch64-manylinux_2_28", GLIBC),
    "macos": ("Darwin-arm64", "aarch64-apple-darwin", ["macosx_14_0"]),
    "macos-intel": ("Darwin-x86_64", "x86_64-apple-darwin", ["macosx_14_0"]),
}
CPU = ("--index-url", "https://download.pytorch.org/whl/cpu")


def download(folder: Path, *words: str) -> bool:
    """Download wheels to a folder; say whether that was possible."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    pip += ["--disable-pip-version-check", "--dest", str(folder), *words]
    return subprocess.run(pip).returncode == 0


def list_packages(name: str, python: str, light: bool) -> str:
    """Return the locked packages of a system and a Python, one a line."""
    wanted = LOCK.read_text()
    if light:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = "\n".join([*project["dependencies"], "uv"])
    uv = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-header"]
    uv += ["--no-annotate", *(("-c", str(LOCK)) if light else ("--no-deps",))]
    uv += ["--python-platform", name, "--python-version", python]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # as PyTorch's
    done = subprocess.run(
        uv, input=wanted, stdout=subprocess.PIPE, text=True, env=environment
    )
    return done.stdout if done.returncode == 0 else sys.exit(1)


def write(folder: Path, system: str, python: str, light: bool) -> None:
    """Write the wheels of one system and one Python, and the list of them."""
    called, name, tags = SYSTEMS[system]
    machine = called.partition("-")[2]
    fit = ["--only-binary", ":all:", "--find-links", str(folder)]
    fit += [word for tag in tags for word in ("--platform", f"{tag}_{machine}")]
    # The first and the last of 3.11: some pins are for one part of it.
    ends = [f"{python}.0", f"{python}.99"]
    first, last = (list_packages(name, end, light).splitlines() for end in ends)
    listed = folder / f"{called}-{python}{'-light' * light}.txt"
    print(f"{listed}: {len(first)} packages ...", flush=True)
    for torch in [line for line in last if line.startswith("torch==")]:
        # On Linux its build for CPUs: of a tenth of the size, from an index of its own.
        cpu = [*fit, "--python-version", python, *CPU, torch]
        if called.startswith("Linux") and not download(folder, *cpu):
            print("PyTorch's own index is not reached; pip looks for a build.")
    part = folder / "listed.part"
    for end, lines in zip(ends, (first, sorted({*last} - {*first})), strict=True):
        part.write_text("\n".join(lines) + "\n")
        if lines and not download(
            folder, *fit, "--python-version", end, "-r", str(part)
        ):
            sys.exit(
                f"{listed.stem}: see the error of pip above; BUNDLE_FOR and "
                "BUNDLE_PYTHON choose other systems and versions of Python"
            )
    part.write_text("\n".join(sorted({*first, *last})) + "\n")
    part.replace(listed)  # its name says that all is there


def main() -> None:
    """Write a bundle, and say how large it is."""
    parser = argparse.ArgumentParser(description="Writes a bundle.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--light", action="store_true", help="without PyTorch")
    parser.add_argument("--system", action="append", help="this one if left out")
    parser.add_argument("--python", action="append", help="this one if left out")
    asked = parser.parse_args()
    here = f"{platform.system()}-{platform.machine()}"
    systems = asked.system or [s for s, row in SYSTEMS.items() if row[0] == here]
    if not systems or set(systems) - set(SYSTEMS):
        parser.error(
            f"BUNDLE_FOR takes {', '.join(SYSTEMS)}; on Windows the course runs in "
            "WSL, which is linux"
        )
    try:
        asked.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"BUNDLE={asked.folder} is to be a folder: {error}")
    for system in systems:
        for python in asked.python or ["{}.{}".format(*sys.version_info)]:
            write(asked.folder, system, python, asked.light)
    if not asked.light:
        from utils.training.weights import PACKAGE

        if not download(asked.folder, PACKAGE):
            sys.exit(f"{PACKAGE}, the laptop's model, cannot be had: see above")
    size = sum(path.stat().st_size for path in asked.folder.iterdir()) / 1e6
    there = (
        f"make check BUNDLE={shlex.quote(str(asked.folder))}{' LIGHT=1' * asked.light}"
    )
    print(f"{asked.folder}: {size:,.0f} MB. On the other machine: {there}")


if __name__ == "__main__":
    main()
