"""JSON lines: written whole, added to by several at once, read strictly."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def line(record: Mapping[str, Any]) -> bytes:
    """Write a record as a line."""
    # A lone surrogate, which broken streams contain, leaves as its JSON escape.
    text = json.dumps(record, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def write(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a file; one that was there is replaced as a whole, at the end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(b"".join(map(line, records)))
    draft.replace(path)


def append(path: str | Path, record: Mapping[str, Any]) -> None:
    """Add a record to a file; threads and processes may do so at once."""
    new = line(record)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a crash cut the last line: do not join it
                new = b"\n" + new
        if file.write(new) != len(new):  # a single write, so lines never mix
            raise OSError(f"{path}: the disk took only part of a line")


def read(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of objects; ValueError names a line that is none."""
    rows = []
    for number, text in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            rows += [dict(json.loads(text))] if text.strip() else []
        except (TypeError, ValueError) as error:
            why = f"{path}: line {number} is no JSON object ({error}): restore the file"
            raise ValueError(why) from error
    return rows
