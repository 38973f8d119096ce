"""Files: any encoding that logs come in, JSON lines, documents, tables."""

import contextlib
import csv
import gzip
import io
import json
import re
import warnings
import zlib
from typing import Any

from utils.logs.importers.values import printed

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
    data = _utf8(data).replace(b"\x1e", b"")  # what stands before a line of json-seq
    if re.match(rb"\s*(event:[^\n]*\n)?data:", data):
        raise ValueError("a raw stream has no question: log request and reply as JSON")
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
    while data.startswith(b"\x1f\x8b"):
        data = _unpacked(data)
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


def _unpacked(data: bytes) -> bytes:
    """Decompress gzip; of a file that is cut, as far as it goes, with a warning."""
    file, pieces = gzip.GzipFile(fileobj=io.BytesIO(data)), []
    try:
        while piece := file.read1(1 << 16):
            pieces.append(piece)
    except (OSError, EOFError, zlib.error) as error:
        if not pieces:
            raise ValueError(f"the gzip file is damaged: {error}") from None
        told = f"the gzip file is damaged: {error}; what comes before is read"
        warnings.warn(told, stacklevel=5)
    return b"".join(pieces)


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
    text = data.decode(errors="replace").lstrip("\ufeff \r\n")
    head, _, rest = text.partition("\n")
    comma = max(",;\t", key=head.count)
    names = next(csv.reader([head], delimiter=comma), [])
    # A first column without a name is an index, as pandas writes one.
    named = all(map(str.strip, names[1:])) and not re.search(r"[{\x00-\x08]", head)
    if len(names) < 2 or not rest.strip() or not named:
        return None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        told = f"columns come twice, the last counts: {', '.join(twice)}"
        warnings.warn(told, stacklevel=4)
    csv.field_size_limit(10**9)  # a cell may hold a whole chat
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma)
    found = list(rows)
    if long := [str(n) for n, row in enumerate(found, 1) if row.get(None)]:
        told = f"more cells than columns at line {', '.join(long[:5])}"
        told += f" ({len(long)} in all): is a comma within a text not quoted?"
        warnings.warn(told, stacklevel=4)
    return [{k: _cell(v) for k, v in row.items() if k} for row in found]


def _cell(value: Any) -> Any:
    """Decode a cell that holds JSON, or a list or dictionary as Python prints it."""
    text = value.strip() if isinstance(value, str) else ""
    if text.lower() in ("", "null", "none", "nan"):
        return None
    for read in (json.loads, printed) if text[0] in "[{" else ():
        with contextlib.suppress(ValueError, RecursionError):
            return read(text)
    return value
