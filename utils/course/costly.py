"""Costly runs: done once, kept with log and run card, replayed afterwards.

    sft = costly.run("04_sft", train_sft, config, quick={"max_steps": 4})

A run is known by its name, its configuration, in which data counts by its digest, and a
version that its author raises by hand when the function learns otherwise. Code that is
moved, renamed or tidied makes no result stale. In quick mode the function runs for real
on a small piece, and what is returned is the shipped run. An interrupted run keeps its
folder, so that the function can go on in it.
"""

import contextlib
import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import modal

from utils.course import run as course
from utils.course.run import ROOT, SHIPPED, read_rows, run_card
from utils.remote import VOLUME, Session


@dataclass(frozen=True)
class RunResult:
    """A finished run: what its function returned, its log's rows, its card.

    `folder` is here; `remote` is where the function saw it, on Modal's Volume. From
    there the adapter is brought home when the run is done.
    """

    folder: Path
    result: dict[str, Any]
    log: list[dict[str, Any]]
    card: dict[str, Any]
    replayed: bool
    remote: str | None = None

    @property
    def adapter(self) -> str:
        """The folder of the adapter, for a function of the same session."""
        return f"{self.remote or self.folder}/adapter"

    def summary(self) -> str:
        """Say in one line whose numbers these are."""
        card, hardware = self.card, self.card["hardware"]
        where = f"{hardware['cores']} cores of {hardware['cpu']}"
        where = hardware.get("gpu") or where
        how = "Replayed, not run now:" if self.replayed else "Run now:"
        return (
            f"{how} {card['name']}, key {card['key'][:12]}, "
            f"{card['seconds'] / 60:.1f} minutes on {where}, {card['date'][:10]}, "
            f"commit {card['commit']}."
        )


def run(
    name: str,
    function: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    quick: dict[str, Any] | None = None,
    jobs: Session | None = None,
    version: int = 1,
) -> RunResult:
    """Return a costly run: replayed where it is known, run where it is not.

    Args:
        name: of the run and its folder; begins with the notebook's number.
        function: takes the configuration and returns a dictionary of plain data. Its
            "log", a list of rows, goes to a file of its own. With `jobs` it may be a
            function of a Modal app.
        config: plain data. "output_dir" is added: where the function may write.
        quick: what differs in the piece that quick mode runs; None: it only replays.
        jobs: where the function runs; None: here.
        version: of the function, raised by hand when it gives other results.

    Raises:
        LookupError: quick mode, and no run of this configuration is shipped.

    """
    mode, shipped = course.current().mode, SHIPPED / name
    wanted = key(config, version)
    if mode == "quick":
        if quick is not None:
            folder = course.current().folder / f"{name}-quick"
            shutil.rmtree(folder, ignore_errors=True)
            _execute(name, function, config | quick, version, folder, jobs)
        return load_shipped(name, config, version)
    folder = course.current().folder / f"{name}-{wanted[:8]}"
    on_modal = jobs is not None and jobs.on_modal
    remote = f"/runs/{folder.name}" if on_modal else None
    done = None
    for place in [folder] if on_modal else [folder, shipped]:
        found = read(place)
        if found and found.card["key"] == wanted:
            print(found.summary())
            done = replace(found, remote=remote)
            break
    if done is None:
        done = _execute(name, function, config, version, folder, jobs)
    # What later notebooks build on: the run that this one used last.
    used = remote or done.folder.relative_to(ROOT).as_posix()
    (course.current().folder / f"{name}.used").write_text(used)
    return done


def load_shipped(name: str, config: dict[str, Any], version: int = 1) -> RunResult:
    """Return the shipped run of a configuration.

    Raises:
        LookupError: none is shipped, or it had another configuration; the message
            names the settings that differ.

    """
    done = read(SHIPPED / name)
    if done and done.card["key"] == key(config, version):
        print(done.summary())
        return done
    differs = "nothing of that name is shipped"
    if done:
        ours, theirs = digest_data(config), done.card["config"]
        names = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        differs = f"it differs in {', '.join(names) or 'its version'}"
    raise LookupError(
        f"data/runs/{name} is not a run of this configuration: {differs}. Set it back, "
        'or run it anew with MODE = "full".'
    )


def adapter(name: str, here: bool = False) -> dict[str, str]:
    """Find the adapter of a run: of the one used last in this mode, else the shipped.

    Returns its folder ("adapter", from the course's root, or on Modal's Volume) and,
    where it is here, the SHA-256 of its weights ("sha256"), which belong in the
    configuration of what is made of them. `here` leaves out what lies on the Volume: a
    larger model's. Raises FileNotFoundError.
    """
    mode, shipped = course.current().mode, f"data/runs/{name}"
    note = course.current().folder / f"{name}.used"
    used = note.read_text() if mode != "quick" and note.exists() else shipped
    if used.startswith("/runs/") and not here:
        return {"adapter": f"{used}/adapter"}
    if used.startswith("/runs/") or not (ROOT / used).exists():
        used = shipped
    folder = ROOT / used / "adapter"
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        raise FileNotFoundError(
            f"no adapter of {name} in runs/{mode}/ or data/runs/: first run "
            f"notebook {name.partition('_')[0]} with MODE = {mode!r}"
        )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {"adapter": folder.relative_to(ROOT).as_posix(), "sha256": digest}


def latest(name: str) -> RunResult:
    """Return the run of that name that this mode used last, else the shipped one.

    Raises LookupError where there is neither.
    """
    note = course.current().folder / f"{name}.used"
    used = (
        note.read_text() if course.current().mode != "quick" and note.exists() else ""
    )
    done = (used and read(ROOT / used)) or read(SHIPPED / name)
    if done is None:
        raise LookupError(f"no run {name}: run notebook {name.partition('_')[0]} first")
    return done


def key(config: dict[str, Any], version: int = 1) -> str:
    """Return what a run is known by: SHA-256 of its configuration and version."""
    text = json.dumps([digest_data(config), version], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_data(value: Any) -> Any:
    """Put the size and digest of data in its place, so that a run card stays short.

    An adapter is known by the digest of its weights, wherever it lies.
    """
    if isinstance(value, dict):
        moved = {"adapter"} if "sha256" in value else set()
        return {k: digest_data(one) for k, one in value.items() if k not in moved}
    if isinstance(value, list) and value and isinstance(value[0], dict | str | list):
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        return f"{len(value)} items, sha256 {digest[:16]}"
    return value


def _execute(
    name: str,
    function: Callable,
    config: dict[str, Any],
    version: int,
    folder: Path,
    jobs: Session | None,
) -> RunResult:
    """Run the function; keep its result, its log and, last of all, its card."""
    on_modal = jobs is not None and jobs.on_modal
    remote = f"/runs/{folder.name}" if on_modal else None
    folder.mkdir(parents=True, exist_ok=True)
    job = copy.deepcopy(config) | {"output_dir": remote or str(folder)}
    clock = folder / "seconds.txt"  # spent by attempts that were interrupted
    spent = float(clock.read_text()) if clock.exists() else 0.0
    started, before = time.monotonic(), jobs.seconds if jobs else 0.0
    try:
        # What is no job of an app runs here, and may send parts to Modal itself.
        on_app = jobs is not None and hasattr(function, "local")
        result = dict(jobs.run(function, job) if on_app else function(job))
    finally:
        # On Modal what containers took, without the wait for them.
        there = jobs.seconds - before if on_modal else 0.0
        spent += there or time.monotonic() - started
        clock.write_text(f"{spent:.1f}")
    log = result.pop("log", [])
    rows = "".join(json.dumps(row) + "\n" for row in log)
    (folder / "log.jsonl").write_text(rows, encoding="utf-8")
    text = json.dumps(result, default=lambda number: number.item())  # numpy's
    (folder / "result.json").write_text(text + "\n", encoding="utf-8")
    if on_modal:
        _bring_home(folder)
    card = run_card(course.current().command, round(spent, 1))
    card |= {"name": name, "key": key(config, version), "version": version}
    card |= {"on_modal": on_modal, "config": digest_data(config)}
    if on_modal and jobs.machine:
        card["hardware"] = jobs.machine
    # Last, for it says that the run is complete.
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    done = replace(read(folder), replayed=False, remote=remote)  # as a replay will be
    print(done.summary())
    return done


def _bring_home(folder: Path) -> None:
    """Copy a run's adapter, if it has one, from the Volume into its folder here."""
    volume = modal.Volume.from_name(VOLUME)
    with contextlib.suppress(modal.exception.NotFoundError):
        for file in volume.listdir(f"{folder.name}/adapter"):
            (folder / "adapter").mkdir(exist_ok=True)
            content = b"".join(volume.read_file(file.path))
            (folder / "adapter" / Path(file.path).name).write_bytes(content)


def read(folder: Path) -> RunResult | None:
    """Return the run that a folder holds; None if it is not complete."""
    if not (folder / "card.json").exists():
        return None
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return RunResult(folder, result, read_rows(folder / "log.jsonl"), card, True)
