"""Read traces and cases one by one in a notebook, and note what is wrong with them.

A page is static HTML with a little JavaScript (`viewer.html`). Where no script may run
(GitHub, a notebook that is not trusted), the first rows stand as plain tables. A
notebook that runs again saves the same output.

    rows = viewer.from_traces(traces, product)
    viewer.show(rows)
    viewer.annotate(rows, {"dates": "wrong period"}, "annotations.jsonl", "ana")
    viewer.save("annotations.jsonl", "~/Downloads/annotations.jsonl")
    viewer.annotations("annotations.jsonl")
"""

import difflib
import hashlib
import html
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from utils.evals.types import Case, Grade, Product, correction
from utils.logs import jsonl
from utils.logs.importers import ARGUMENTS, INPUT, OUTPUT, RESULT
from utils.logs.traces import Trace

# What a page shows: "id", "question", "answer", "right", and anything else. Short
# values become facts that can be filtered by; long ones are folded, and so are lists
# of (heading, texts).
Row = dict[str, Any]
# A piece of a page: text, or a tag (perhaps "tag.class") and what is inside.
Node = str | list

RIGHT = ("answer", "sql")  # keys under which products keep a right answer
ROW_LIMIT = 200  # rows in a page
TEXT_LIMIT = 6_000  # characters shown of one text
SPAN_LIMIT = 2_000  # and of one part of a span
PAGE_LIMIT = 3_000_000  # characters in one; more would make a notebook slow
PLAIN_ROWS = 3  # readable without JavaScript
WORD_LIMIT = 600  # a longer text is compared by lines
_WORD = re.compile(r"\s*(?:[^\s(),;]+|[(),;])")
_TEMPLATE = Path(__file__).with_name("viewer.html")


@dataclass(frozen=True, repr=False)
class Page:
    """What a cell shows: HTML, and one line of text where there is no HTML."""

    html: str
    label: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.label


def from_traces(traces: Sequence[Trace], product: Product | None = None) -> list[Row]:
    """Make a row of each trace: question, answer, correction, status, cost, spans.

    With a product the answer is what it extracts from the reply, else the reply. The
    right answer is the feedback's `answer` or `sql`; a trace without one has none.
    """
    rows = []
    for trace in traces:
        note = trace.feedback or {}
        right = correction(trace, product)
        answer = product.extract(trace.reply) if product else trace.reply
        case = {"id": trace.trace_id, "question": trace.question}
        tokens_in, tokens_out = trace.tokens
        rows.append(
            {
                **case,
                "answer": _show(product, case, answer),
                "right": None if right is None else _show(product, case, right),
                "status": trace.status,
                "verdict": trace.verdict,
                "comment": note.get("comment"),
                "tokens": f"{tokens_in:,} in, {tokens_out:,} out",
                "seconds": trace.seconds,
                "reply": trace.reply,
                "spans": [(_title(span), _parts(span)) for span in trace.spans],
            }
        )
    return rows


def from_cases(
    cases: Sequence[Case],
    answers: Sequence[Any],
    grades: Sequence[Grade] | None = None,
    product: Product | None = None,
) -> list[Row]:
    """Make a row of each case with its answer: right or wrong and why, and its slices.

    What is right stands under the first of `RIGHT` that a case has.
    """
    rows, grades = [], grades or [None] * len(cases)
    for case, answer, grade in zip(cases, answers, grades, strict=True):
        right = next((key for key in RIGHT if key in case), "answer")
        row = {
            "id": case["id"],
            "question": case["question"],
            "answer": _show(product, case, answer),
            "right": _show(product, case, case.get(right)),
        }
        if grade:
            row |= {"correct": grade.correct, "error": grade.error}
        rows.append(row | {k: v for k, v in case.items() if k not in {*row, right}})
    return rows


def _show(product: Product | None, case: Case, answer: Any) -> str:
    if answer is None or answer == "":
        return f"({product.no_answer if product else 'no answer'})"
    return product.show(case, answer) if product else _text(answer)


def _text(value: Any) -> str:
    """Write any value as text: a string as it is, the rest as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


def _title(span: dict) -> str:
    seconds = span.get("seconds")
    return span["name"] + ("" if seconds is None else f", {seconds:.3g} s")


def _parts(span: dict) -> list[str]:
    """Return what went into a span and what came out, each as one text."""
    attributes, parts = span["attributes"], []
    for key in (INPUT, OUTPUT):
        for message in attributes.get(key) or []:
            more = {k: v for k, v in message.items() if k not in ("role", "content")}
            said = _text(message.get("content") or "") + (_text(more) if more else "")
            parts.append(f"{message.get('role')}: {said}")
    for name, key in (("arguments", ARGUMENTS), ("result", RESULT)):
        if attributes.get(key) is not None:
            parts.append(f"{name}: {_text(attributes[key])}")
    if attributes.get("error.type"):
        parts.append(f"error: {attributes['error.type']}")
    return parts


def show(rows: Sequence[Row]) -> Page:
    """Show one row at a time, its answer beside the right one, the difference marked.

    The page says how many rows it left out, where they are many or long. Filters are
    made of the facts that take 2 to 20 values.
    """
    return _page(list(rows), None)


def annotate(
    rows: Sequence[Row],
    codes: Mapping[str, str] | Sequence[str],
    path: str | Path,
    reader: str = "me",
) -> Page:
    """Show rows with a note and codes to tick, several a row; `save` brings them home.

    `codes` are names, or names with what each means. Digits tick, n goes to the note.
    What `path` holds from this reader is filled in, and the browser keeps what is new
    until it is downloaded. ValueError if ids are missing or come twice.
    """
    ids = [str(row.get("id") or "") for row in rows]
    if "" in ids or len(set(ids)) < len(ids):
        raise ValueError('each row needs an "id" of its own, to keep a note under')
    if not isinstance(codes, Mapping):
        codes = {name: "" for name in codes}
    saved = [note for note in _notes(path) if note["reader"] == reader]
    form = {
        "codes": list(codes.items()),
        "file": Path(path).name,
        "reader": reader,
        "saved": {note["id"]: note for note in saved if note["id"] in ids},
    }
    return _page(list(rows), form)


def _page(rows: list[Row], form: dict | None) -> Page:
    """Put rows into the template, as plain HTML and as data for the script."""
    filters = _filters(rows[:ROW_LIMIT])
    items, size = [], 0
    for number, row in enumerate(rows[:ROW_LIMIT], 1):
        facts = {key: _fact(row.get(key)) for key in filters}
        items.append(
            {"id": str(row.get("id", number)), "tree": _tree(row), "facts": facts}
        )
        size += len(json.dumps(items[-1], ensure_ascii=False))
        if size > PAGE_LIMIT:
            break
    label = f"{len(items):,} rows" if len(items) != 1 else "1 row"
    if len(items) < len(rows):
        label = f"The first {len(items):,} of {len(rows):,} rows"
        label += f" ({len(rows) - len(items):,} are left out)"
    data = {"rows": items, "filters": filters, "form": form, "label": label}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # As escapes, these cannot end the script element or hide part of it.
    text = text.replace("<", "\\u003c").replace(">", "\\u003e")
    plain = "".join(_html(item["tree"]) for item in items[:PLAIN_ROWS])
    # Where the style sheet is taken out, Jupyter would put text flush right.
    plain = plain.replace("<td>", '<td style="text-align: left; vertical-align: top">')
    parts = {
        "@ID@": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12],
        "@LABEL@": label,
        "@FIRST@": str(min(PLAIN_ROWS, len(items))),
        "@ROWS@": plain,
        "@DATA@": text,
    }
    # In one pass: what a row holds may look like one of these marks.
    template = _TEMPLATE.read_text(encoding="utf-8")
    page = re.sub("@[A-Z]+@", lambda match: parts[match[0]], template)
    # Broken streams leave half a character, which no notebook can save.
    page = page.encode("utf-8", "replace").decode()
    kind = "Viewer" if form is None else "Annotation page"
    return Page(page, f"{kind}: {label}")


def _fact(value: Any) -> str:
    """Write a short value for the line of facts; "" if it has no place there."""
    value = value.item() if hasattr(value, "item") else value  # of NumPy
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    short = isinstance(value, str) and len(value) <= 120 and "\n" not in value
    return value if short else ""


def _filters(rows: list[Row]) -> dict[str, list[str]]:
    """Return the facts worth filtering by, each with its values."""
    keys = {key: None for row in rows for key in row}
    filters = {}
    for key in keys:
        if key in ("id", "question", "answer", "right", "reply"):
            continue
        values = sorted({_fact(row.get(key)) for row in rows})
        few = 2 <= len(values) <= 20 and len(values) < max(3, len(rows))
        if few and max(map(len, values)) <= 40:
            filters[key] = values
    return filters


def _tree(row: Row) -> Node:
    """Lay one row out: id, question, both answers, facts, and the rest folded."""
    row = {key: value for key, value in row.items() if value is not None}
    answer, right = (_cut(row.get(key, "")) for key in ("answer", "right"))
    left = [answer]
    cells = []
    if "right" in row:
        left, marked = difference(answer, right)
        heading = "Right answer" + (" (the same)" if answer == right else "")
        cells = [["td", ["b", heading], ["pre", *marked]]]
    if "answer" in row or not cells:
        cells.insert(0, ["td", ["b", "Answer"], ["pre", *left]])
    tree = ["section", ["pre.question", ["b", f"{row.get('id', '')} "]]]
    tree[-1].append(_cut(row.get("question", "")) or "(no question)")
    tree.append(["table", ["tbody", ["tr", *cells]]])

    facts, folded = ["p.facts"], []
    for key, value in row.items():
        if key in ("id", "question", "answer", "right"):
            continue
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            folded += [_fold(name, parts) for name, parts in value]
        elif key == "reply" or not _fact(value):
            folded.append(_fold(key, [value]))
        else:
            facts.append(["span", ["b", str(key)], f" {_fact(value)} "])
    return [*tree, facts, *folded]


def _fold(name: str, parts: list) -> Node:
    limit = TEXT_LIMIT if len(parts) == 1 else SPAN_LIMIT
    shown = [["pre", _cut(part, limit)] for part in parts]
    return ["details", ["summary", str(name)], *shown]


def _cut(value: Any, limit: int = TEXT_LIMIT) -> str:
    text = _text(value)
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def difference(answer: str, right: str) -> tuple[list[Node], list[Node]]:
    """Mark what stands on one side only: `del` in the answer, `ins` in the right one.

    Words are compared without the space between them; texts of more than `WORD_LIMIT`
    words by lines.
    """
    a, b = _WORD.findall(answer), _WORD.findall(right)
    long = max(len(a), len(b)) > WORD_LIMIT
    if long:
        a, b = answer.splitlines(keepends=True), right.splitlines(keepends=True)
    words = [word.strip() for word in a], [word.strip() for word in b]
    matcher = difflib.SequenceMatcher(None, *words, autojunk=long)
    left, other = [], []
    for kind, a1, a2, b1, b2 in matcher.get_opcodes():
        for nodes, part, tag in ((left, a[a1:a2], "del"), (other, b[b1:b2], "ins")):
            # Line breaks and indents stay outside of the marks.
            for piece in re.split(r"(\A\s+|\s*\n\s*)", "".join(part)):
                marked = kind != "equal" and piece.strip()
                nodes.append([tag, piece] if marked else piece)
    return left, other


def _html(node: Node) -> str:
    """Write a node as HTML, all text escaped."""
    if isinstance(node, str):
        return html.escape(node)
    tag, _, name = node[0].partition(".")
    start = f'<{tag} class="{name}">' if name else f"<{tag}>"
    return start + "".join(_html(child) for child in node[1:]) + f"</{tag}>"


class _Note(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True, extra="allow")

    id: str
    note: str = ""
    codes: list[str] = []
    reader: str = "me"
    time: str = ""


def annotations(path: str | Path) -> list[dict]:
    """Read the notes of all readers: id, note, codes, reader, time.

    Of several lines of one reader on one id the last counts; a note that was emptied
    is gone. No file yet: [], and a line that says how to make one.
    """
    notes = [note for note in _notes(path) if note["note"] or note["codes"]]
    if not notes:
        print(f"No annotations in {Path(path).name} yet: viewer.annotate makes them.")
    return notes


def save(path: str | Path, source: str | Path) -> int:
    """Add downloaded annotations, a file or its pasted lines; return how many are new.

    A note that is older than the one in `path` is left out. ValueError if a line of
    `source` is no annotation; then nothing is written.
    """
    if isinstance(source, Path) or not source.lstrip().startswith("{"):
        source = Path(source).expanduser().read_text(encoding="utf-8-sig")
    new, bad = _parse(source)
    if bad:
        raise ValueError(f"nothing was saved: {'; '.join(bad[:5])}")
    path = Path(path).expanduser()
    old = {(note["reader"], note["id"]): note["time"] for note in _notes(path)}
    count = 0
    for note in new:
        before = old.get((note["reader"], note["id"]))
        if before is None or before < note["time"]:
            jsonl.append(path, note)
            count += 1
    print(f"{count} new in {path.name}, {len(new) - count} were there or are older.")
    return count


def _notes(path: str | Path) -> list[dict]:
    """Read a file of notes, the last of each reader and id; warn of bad lines."""
    path = Path(path).expanduser()
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    notes, bad = _parse(text)
    if bad:
        message = f"{path.name}: {len(bad)} lines skipped: {'; '.join(bad[:5])}"
        warnings.warn(message, UserWarning, stacklevel=3)
    return notes


def _parse(text: str) -> tuple[list[dict], list[str]]:
    """Return the notes in JSON lines, and what is wrong with lines that are none."""
    notes, bad = {}, []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            note = _Note.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the line"
            bad.append(f"line {number}: {place}: {first['msg']}")
        else:
            notes[note.reader, note.id] = note.model_dump()
    return list(notes.values()), bad
