"""Foreign logs: one file a family in foreign/, what came of each record beside it."""

import csv
import gzip
import io
import json
import random
import warnings
from pathlib import Path

import pytest

from utils.logs import importers, traces

ROOT = Path(__file__).parents[2]
FOREIGN = Path(__file__).parent / "foreign"
EXPECTED = json.loads((FOREIGN / "expected.json").read_text())
TICKETS = ROOT / "data" / "tickets"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Where?"}]}
SAID = {"message": {"role": "assistant", "content": "There."}, "finish_reason": "stop"}
CALL = {"request": ASKED, "response": {"choices": [SAID]}, "time": 1783329631}
LINE = json.dumps(CALL)
TWO = [CALL, CALL | {"time": 1783329632}]
LINES = "\n".join(map(json.dumps, TWO))


def load(path, data=None, **more):
    """The traces, the skipped lines, and the text of all warnings."""
    if data is not None:
        path = path / "log"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, bad = traces.load(path, **more)
    told = " ".join(str(w.message) for w in caught).replace(str(path), "")
    return found, bad, told


@pytest.mark.parametrize("name", EXPECTED)
def test_every_dialect_is_imported_whole(name, tmp_path):
    found, bad, _ = load(FOREIGN / name)
    facts = [
        [t.question, t.reply, list(t.tokens), t.arguments, t.result, t.status]
        for t in found
    ]
    assert facts == EXPECTED[name] and all("only an id" in b.reason for b in bad)
    assert "SECRET" not in json.dumps([t.to_dict() for t in found])  # thinking
    traces.write(tmp_path / "ours.jsonl", found)
    assert traces.read(tmp_path / "ours.jsonl") == (found, [])
    assert load(FOREIGN / name)[0][0].trace_id == found[0].trace_id


def table(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({k: json.dumps(v) for k, v in row.items()} for row in rows)
    return text.getvalue()


CODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
DOCKER = [json.dumps({"log": json.dumps(one), "stream": "stdout"}) for one in TWO]
FILES = [LINES.replace("\n", "\r\n").encode(coding) for coding in CODINGS]
FILES += [gzip.compress(LINES.encode()), json.dumps(TWO), table(TWO)]
FILES += [json.dumps({"data": TWO, "meta": {"page": 1}}, indent=2), "\n".join(DOCKER)]
FILES += ["\n".join(json.dumps(one, indent=1) for one in TWO)]


@pytest.mark.parametrize("data", FILES)
def test_files_of_every_kind(tmp_path, data):
    found, bad, _ = load(tmp_path, data)
    assert [t.reply for t in found] == ["There.", "There."] and not bad
    assert [t.time[-2:] for t in found] == ["31", "32"]


def spans(**attributes):
    one = {"traceId": "t", "spanId": "0a" * 8, "name": "GET /", "attributes": []}
    for key, value in attributes.items():
        key = key.replace("__", ".")
        one["attributes"].append({"key": key, "value": {"stringValue": value}})
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]})


ITEM = {"object": "embedding", "embedding": [0.1]}
EMBEDDING = json.dumps({"request": {"input": "x"}, "response": {"data": [ITEM]}})
CUT = '[{"role": "user", "parts": [{"ty'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"foo": 1, "bar": 2}', "keys: foo, bar); known shapes: OpenAI chat"),
        ('{"request": {"model": "m"}, "response": null}', "no messages in the request"),
        (json.dumps(CALL | {"response": None}), "neither a reply nor an error"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "role user: no reply"),
        ("hello\nworld", "no JSON"),
        ("[1, 2]", "JSON object"),
        ("[]", "no trace: "),
        ('{"resourceSpans": []}', "no trace: "),
        (spans(http__method="GET"), "1 spans, none a model call"),
        (spans(gen_ai__operation__name="embeddings"), "names are embeddings"),
        (spans(gen_ai__input__messages=CUT), "span 0a0a0a0a0a0a0a0a: gen_ai.input.me"),
        (EMBEDDING, "this is embeddings and no chat"),
        (
            json.dumps(CALL | {"response": {"foo": 1}}),
            "no reply that is known (keys: fo",
        ),
        ('{"input": {"a": 1}, "output": {"b": 2}}', "no reply that is known (keys: b"),
        ('{"resourceSpans": [null, 5]}', "span in resourcespans is null, no object"),
        ("request_id,queue\nr1,x\nr2,y\n", "traces.labels"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, data, words):
    found, _, told = load(tmp_path, data)
    assert found == [] and words in told


def test_other_encodings_and_line_ends_within_texts(tmp_path):
    text = LINES.replace("Where", "Wö")
    found, bad, told = load(tmp_path, text.encode("cp1252"))
    assert [t.question for t in found] == ["Wö?", "Wö?"] and not bad
    assert "read as Windows-1252" in told
    found, bad, told = load(tmp_path, text.encode() + b'\n{"time": "\xff"}')
    assert found[0].question == "Wö?" and len(bad) == 1 and "UTF-8" in bad[0].reason
    found, _, told = load(tmp_path, gzip.compress(text.encode())[:-9])
    assert len(found) == 2 and "the gzip file is damaged" in told
    with pytest.raises(ValueError, match="the gzip file is damaged"):
        load(tmp_path, gzip.compress(text.encode())[:12])
    chunk = {"choices": [{"index": 10**9, "delta": {"content": "a\u2028b"}}]}
    stream = f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\ndata: [DONE]"
    whole = importers.joined(stream)
    assert whole["choices"][0]["message"]["content"] == "a\u2028b"


def test_formats_by_name_and_files_of_no_text(tmp_path):
    for name in ("openai", "gateway", "litellm"):
        assert len(load(tmp_path, LINE, format=name)[0]) == 1
    (tmp_path / "x").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(ValueError, match="a zip archive"):
        traces.load(tmp_path / "x")
    with pytest.raises(ValueError, match="format should be one of"):
        traces.load(tmp_path / "x", format="yaml")


@pytest.mark.parametrize("name", ["spans.jsonl", "openai.jsonl", "langfuse.csv"])
def test_a_cut_file_costs_its_last_record_and_says_so(name, tmp_path):
    lines = (FOREIGN / name).read_bytes().splitlines(keepends=True)[:6]
    data, draw = b"".join(lines), random.Random(1)
    for _ in range(60):
        end = draw.randrange(1, len(data))
        found, bad, told = load(tmp_path, data[:end])
        whole = len(data[:end].splitlines()) - 1
        assert len(found) >= whole - 1 and (found or told)
        assert not bad or "skipped" in told


def test_one_fault_costs_one_span(tmp_path):
    good = (FOREIGN / "spans.jsonl").read_text().splitlines()[0]
    broken = good.replace('"intValue": "31"', '"intValue": "many"')
    broken = broken.replace("0123456789abcdef", "fedcba9876543210")
    found, bad, told = load(tmp_path, f"{good}\n{broken}")
    assert len(found) == 1 and found[0].tokens == (31, 7) and len(bad) == 1
    assert "span fedcba9876543210: attribute gen_ai.usage.input_tokens" in told


def test_what_surrounds_a_call_is_used_or_named(tmp_path):
    more = {"request_id": "r7", "latency_ms": 850, "shard": 4, "user": "u1"}
    more |= {"metadata": {"session_id": "s1", "channel": "mail"}}
    (trace,), _, told = load(tmp_path, json.dumps(CALL | more))
    assert (trace.trace_id, trace.seconds, trace.user_id) == ("r7", 0.85, "u1")
    assert trace.session_id == "s1" and "keys not used: shard" in told
    assert trace.spans[0]["attributes"]["metadata.channel"] == "mail"
    same = f"{LINE}\n{LINE}"
    assert "came before" in load(tmp_path, same)[2]


@pytest.mark.parametrize(
    ("counts", "inside", "told"),
    [
        ({"prompt_tokens": "9", "completion_tokens": 2.0}, (9, 2), 0),
        ({"promptTokens": 9, "completionTokens": 2, "totalTokens": 11}, (9, 2), 0),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}, (9,), 0),
        ({"input_tokens": 5, "cache_read_input_tokens": 4}, (9,), 0),
        ({"input_tokens": 9, "input_token_details": {"cache_read": 4}}, (9,), 0),
        ({"input": 5, "input_cached_tokens": 4, "output": 2}, (9, 2), 0),
        ({"input": 9, "input_cached_tokens": 4, "output": 2, "total": 11}, (9, 2), 0),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 40}}, (9,), 1),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 99}, (9, 2), 1),
        ({"prompt_tokens": 5, "cached_tokens": 50, "completion_tokens": -1}, (55,), 1),
    ],
)
def test_tokens_are_counted_once(counts, inside, told):
    known, notes = importers.usage(counts)
    assert tuple(known[key] for key in traces.TOKENS if key in known) == inside
    assert len(notes) == told


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"feedback": "Thumbs up"}, "thumbs_up"),
        ({"rating": -1}, "thumbs_down"),
        ({"feedback_stats": {"user_score": {"n": 1, "avg": 1.0}}}, "thumbs_up"),
        ({"scores": [{"name": "judge", "value": 1}]}, None),
        ({"feedback": {"rating": 4}}, None),
    ],
)
def test_feedback_is_taken_or_named(tmp_path, given, verdict):
    more = {"time": "soon", "user": {"id": "u1"}}
    (trace,), _, told = load(tmp_path, json.dumps(CALL | given | more))
    assert trace.verdict == verdict and trace.user_id == "u1"
    assert "time 'soon' cannot be read" in told
    assert ("keys not used" in told) == (verdict is None)


def test_labels_of_a_table_become_feedback(tmp_path):
    found, _, told = load(TICKETS / "gateway.jsonl")
    assert len(found) == 420 and not told and found[0].seconds == 1.167
    answer = ["final_queue", "final_priority", "bike_locked"]

    def verdict(trace, row):
        return "approved" if row["router_suggestion"] == "kept" else "corrected"

    path = TICKETS / "desk_export.csv"
    assert traces.labels(found, path, answer=answer, verdict=verdict) == (289, [])
    assert {t.verdict for t in found} == {None, "approved", "corrected"}
    labelled = next(t for t in found if t.verdict)
    assert list(labelled.feedback["answer"]) == answer
    (tmp_path / "more.jsonl").write_text(
        '{"id": "chatcmpl-00000", "right": 4, "said": "thumbs_up"}\n{"id": "no"}\n'
    )
    with pytest.raises(ValueError, match="row 2 has no 'right', only id"):
        traces.labels(found, tmp_path / "more.jsonl", "id", "right", "said")
    with pytest.warns(traces.SkippedLines, match="1 labels are of no trace here: no"):
        done = traces.labels(found, tmp_path / "more.jsonl", "id")
    assert done == (1, ["no"]) and found[0].verdict == "corrected"
    with pytest.raises(ValueError, match="verdict should be one of"):
        traces.labels(found, path, verdict="router_suggestion")
