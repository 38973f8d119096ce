"""Files: any encoding that logs come in, JSON lines, documents, tables."""

import ast
import csv
import gzip
import io
import json
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
    data = _utf8(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data)
    try:
        whole = json.loads(data)
        return (whole if isinstance(whole, list) else [whole]), "list"
    except (ValueError, RecursionError):
        lines = data.splitlines()
    first = next((line.strip() for line in lines if line.strip()), b"")
    if _parses(first):
        return lines, "lines"
    if first[:1] in (b"{", b"["):
        return _documents(data, lines)
    table = None if any(map(_parses, lines[:50])) else _table(data)
    return (table, "CSV") if table else (lines, "lines")


def _utf8(data: bytes) -> bytes:
    for magic, what in _REFUSED.items():
        if data.startswith(magic):
            raise ValueError(f"this is {what}: unpack it or export it as JSON or CSV")
    encoding = next((e for mark, e in _MARKS.items() if data.startswith(mark)), None)
    start = data[:400]
    if encoding is None and start.count(0) > len(start) / 3:  # UTF-16 without its mark
        encoding = "utf-16-le" if start[1] == 0 else "utf-16-be"
    if encoding is None:
        return data
    return data.decode(encoding, "replace").encode("utf-8", "backslashreplace")


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _documents(data: bytes, lines: list[bytes]) -> tuple[list[Any], str]:
    """Read documents over several lines, one after another or in a list cut off."""
    try:
        text, decoder, found = data.decode(), json.JSONDecoder(), []
    except UnicodeDecodeError:
        return lines, "lines"
    at = text.index("[") + 1 if text.lstrip().startswith("[") else 0
    while text[at:].strip(" \t\r\n,]"):
        while text[at] in " \t\r\n,]":
            at += 1
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            broken = not found or any(map(_parses, lines[1:50]))
            return (
                (lines, "lines") if broken else ([*found, text[at:].encode()], "list")
            )
        found.append(item)
    return found, "list"


def _table(data: bytes) -> list[dict] | None:
    """Read a table with a head: commas, semicolons or tabs; None if it is none."""
    try:
        text = data.decode().lstrip()
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace").lstrip()  # Excel's, in the West
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
