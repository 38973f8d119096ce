"""Redaction: recall and precision on the marked data, and what must stay untouched."""

import itertools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.logs.redaction import find, redact, redact_trace, score
from utils.tidewater import read_jsonl
from utils.tidewater.words import NOT_NAMES

TRACES = {trace["trace_id"]: trace for trace in read_jsonl("traces.jsonl")}
MARKED = {row["trace_id"]: row["spans"] for row in read_jsonl("pii.jsonl")}


def question(trace):
    return trace["spans"][0]["attributes"]["gen_ai.input.messages"][-1]["content"]


def reply(trace):
    return trace["spans"][0]["attributes"]["gen_ai.output.messages"][0]["content"]


@pytest.mark.parametrize("words", [(), (NOT_NAMES,)], ids=["general", "tidewater"])
def test_recall_and_precision_on_the_marked_data(words):
    found = {name: find(question(trace), *words) for name, trace in TRACES.items()}
    counts = score(found, MARKED)
    assert counts["all"]["marked"] == 74
    assert counts["all"]["covered"] / 74 >= 0.95
    assert counts["all"]["right"] / counts["all"]["reported"] >= 0.97
    for kind in ("email", "phone", "extension", "name"):
        assert counts[kind]["covered"] / counts[kind]["marked"] >= 0.93, kind
        assert counts[kind]["right"] / counts[kind]["reported"] >= 0.93, kind


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Cheers, dev", "Cheers, [name]"),
        ("ring priya on 555-0142 when done", "ring [name] on [phone] when done"),
        ("this is Jean-Luc O'Brien from ops", "this is [name] from ops"),
        ("Please forward it to María Núñez in PR", "Please forward it to [name] in PR"),
        ("call (212) 555-0142. Regards, A. K. Pym", "call [phone]. Regards, [name]"),
        ("on +44 20 7946 0958 or a.b@x.co.uk", "on [phone] or [email]"),
        ("more than 100 2025 orders", "more than 100 2025 orders"),
    ],
)
def test_forms(text, redacted):
    assert redact(text) == redacted


PIECES = "thanks, |Ana Bauer|owen|ext 12| x4417|555-0142|a@b.co|. |(|)|\n| - "
PIECES += "|[name]|[|ring |for |it's | van |A."
pieces = st.lists(st.sampled_from(PIECES.split("|")), max_size=9).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=80), pieces))
def test_any_text_is_redacted_once_and_for_all(text):
    hits = find(text)
    assert all(text[hit.start : hit.end] == hit.text != "" for hit in hits)
    assert all(a.end <= b.start for a, b in itertools.pairwise(hits))
    once = redact(text)
    assert redact(once) == once


def test_every_trace_keeps_its_sql_rows_and_loses_what_is_marked():
    for trace_id, trace in TRACES.items():
        before, marks = json.dumps(trace), MARKED.get(trace_id, [])
        cleaned, _ = redact_trace(trace, not_names=NOT_NAMES)
        assert json.dumps(trace) == before, "the given trace was changed"
        assert cleaned["spans"][1:] == trace["spans"][1:]
        assert cleaned["feedback"] == trace["feedback"]
        assert marks or cleaned == trace
        left = json.dumps(cleaned, ensure_ascii=False)
        for mark in marks:
            assert mark["text"] not in left or mark["type"] == "extension"
            for word in re.findall(r"[A-Z][a-z]{2,}", mark["text"]):
                assert not re.search(rf"\b{word}\b", left), word


def test_replies_lose_single_names_and_sql_only_whole_ones():
    sql = "SELECT 'Dev', 'Dev May' WHERE day > '2026-05-01' LIMIT 2026"
    asked = "Sales? nadia.west@x.example or Dev May, ext 2026"
    told = f"Nadia, Dev: West, May 2026, ext 2026\n```sql\n{sql}\n```"
    chat = {"gen_ai.input.messages": [{"content": asked}]}
    chat |= {"gen_ai.output.messages": [{"content": told}]}
    call = {"gen_ai.tool.call.arguments": {"sql": sql}}
    trace = {"spans": [{"attributes": chat}, {"attributes": call}]}
    trace |= {"feedback": {"comment": "ask Dev"}, "user_id": "u28"}
    cleaned, hits = redact_trace(trace, not_names=NOT_NAMES)
    assert [hit.kind for hit in hits] == ["email", "name", "extension"]
    new_sql = sql.replace("Dev May", "[name]")
    names = "[name], [name]: West, May [extension], ext [extension]"
    assert reply(cleaned) == f"{names}\n```sql\n{new_sql}\n```"
    (arguments,) = cleaned["spans"][1]["attributes"].values()
    assert arguments == {"sql": new_sql}
    assert cleaned["feedback"]["comment"] == "ask [name]"
    # West is a region for Tidewater; without its words it is half of an address.
    assert "[name]: [name], May" in reply(redact_trace(trace)[0])
    # With a key users become pseudonyms, the same ones for the same key.
    users = [redact_trace(trace, key)[0]["user_id"] for key in (None, b"k", b"k", b"l")]
    assert users[0] == "u28" and users[1] == users[2] and len(set(users)) == 3
