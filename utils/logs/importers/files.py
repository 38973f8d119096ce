"""Files: any encoding that logs come in, JSON lines, documents, tables."""

import ast
import csv
import gzip
import io
import json
import re
import warnings
import zlib
from typing import Any

_REFUSED = {b"PK\x03\x04": "a zip archive or a spreadsheet", b"PAR1": "a Parquet file"}
_REFUSED |= {b"SQLite format 3": "an SQLite database", b"%PDF": "a PDF"}
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def records(data: bytes) -> tuple[list[Any], str]:
    """Split a file into its records, and say of what kind it is.

    The kind is "lines" (bytes, to be parsed one by one), "list" (parsed) or "CSV"
    (dictionaries by column). A list that is cut off ends with its rest, as bytes.
    ValueError names a file that holds no text.
    """
    data = _utf8(data)
    try:
        whole = json.loads(data)
        return (whole if isinstance(whole, list) else [whole]), "list"
    except (ValueError, RecursionError):
        lines = data.splitlines()
    first = next((line.strip() for line in lines if line.strip()), b"")
    found = None
    if not _parses(first) and first[:1] in (b"{", b"["):
        found = _documents(data, any(map(_parses, lines[1:50]))), "list"
    elif not any(map(_parses, lines[:50])):
        found = _table(data), "CSV"
    return found if found and found[0] else (lines, "lines")


def _utf8(data: bytes) -> bytes:
    """Bring a text to UTF-8; what is neither that nor UTF-16 is read with a warning."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"the gzip file is damaged: {error}") from None
    for magic, what in _REFUSED.items():
        if data.startswith(magic):
            raise ValueError(f"this is {what}: unpack it or export it as JSON or CSV")
    encoding = next((e for mark, e in _MARKS.items() if data.startswith(mark)), None)
    start = data[:400]
    if encoding is None and start.count(0) > len(start) / 3:  # UTF-16 without its mark
        encoding = "utf-16-le" if start[1:2] == b"\0" else "utf-16-be"
    if encoding is None:
        odd = [line for line in data.splitlines() if not line.isascii()]
        if not odd or any(one.decode(errors="ignore").encode() == one for one in odd):
            return data
        encoding = "windows-1252"
        told = "the file is no UTF-8 and was read as Windows-1252 (Latin-1); "
        warnings.warn(f"{told}save it as UTF-8 if letters look wrong", stacklevel=4)
    return data.decode(encoding, "replace").encode("utf-8", "backslashreplace")


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _documents(data: bytes, lines: bool) -> list[Any] | None:
    """Read documents over several lines, one after another or in a list cut off."""
    text, decoder, found = data.decode(errors="replace"), json.JSONDecoder(), []
    gap = re.compile(r"[\s,\]]*")
    at = gap.match(text, text.index("[") + 1 if text.lstrip()[0] == "[" else 0).end()
    while at < len(text):
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None if lines or not found else [*found, text[at:].encode()]
        found.append(item)
        at = gap.match(text, at).end()
    return found


def _table(data: bytes) -> list[dict] | None:
    """Read a table with a head: commas, semicolons or tabs; None if it is none."""
    text = data.decode(errors="replace").lstrip()
    head, _, rest = text.partition("\n")
    comma = max(",;\t", key=head.count)
    names = next(csv.reader([head], delimiter=comma), [])
    if len(names) < 2 or not rest.strip() or not all(map(str.strip, names)):
        return None
    csv.field_size_limit(10**9)  # a cell may hold a whole chat
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma)
    return [{k: _cell(v) for k, v in row.items() if k} for row in rows]


def _cell(value: Any) -> Any:
    """Decode a cell that holds JSON, or a list or dictionary as Python prints it."""
    text = value.strip() if isinstance(value, str) else ""
    if text.lower() in ("", "null", "none", "nan"):
        return None
    for read in (json.loads, ast.literal_eval) if text[0] in "[{" else ():
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value
