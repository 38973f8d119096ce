"""Traces: the course's log, feedback, the collect-now kit, one test a foreign shape."""

import gc
import json
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from utils.logs import importers, record, traces
from utils.logs.traces import Trace

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "traces.jsonl"
FIXTURES = ROOT / "data" / "foreign_logs"
RAW = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
PROPERTIES = [k for k, v in vars(Trace).items() if isinstance(v, property)]


def call(question="q?", reply="a.", **attributes):
    """An `llm` span."""
    attributes = {
        traces.INPUT: [{"role": "user", "content": question}],
        traces.OUTPUT: [{"role": "assistant", "content": reply}] if reply else [],
    } | attributes
    return traces.span("llm", "chat m", attributes)


def tool(arguments, result):
    """A `tool` span."""
    attributes = {traces.ARGUMENTS: arguments, traces.RESULT: result}
    return traces.span("tool", "execute_tool run_sql", attributes)


# A trace and its file


def test_every_trace_of_the_course_survives_the_round_trip(tmp_path):
    found, bad = traces.read(DATA)
    assert [t.to_dict() for t in found] == RAW and bad == []
    traces.write(tmp_path / "copy.jsonl", found)
    assert (tmp_path / "copy.jsonl").read_bytes() == DATA.read_bytes()
    assert Counter(t.status for t in found) == {
        "answered": 1348,
        "no_query": 23,
        "timeout": 7,
        "rate_limit": 5,
        "overloaded": 3,
    }
    reviewed = [t for t in found if t.verdict in ("approved", "corrected")]
    chats = [traces.to_messages(t, answer=t.feedback.get("sql")) for t in reviewed]
    assert len(chats) == 814
    assert {tuple(m["role"] for m in c) for c in chats} == {("user", "assistant")}


def test_properties_of_a_trace_with_a_second_try():
    trace = traces.new_trace(
        [
            call("first?", "SELECT x", **{traces.TOKENS[0]: 10, traces.TOKENS[1]: 2}),
            tool({"sql": "SELECT x"}, {"error": "no such column: x"}),
            call("no such column: x", "SELECT y", **{traces.TOKENS[0]: 20}),
            tool({"sql": "SELECT y"}, {"rows": [[1]], "error": None})
            | {"seconds": 0.25},
        ],
        user_id="u1",
    )
    assert (trace.question, trace.reply) == ("first?", "SELECT y")
    assert trace.arguments == {"sql": "SELECT y"} and trace.result["rows"] == [[1]]
    assert trace.status == "answered" and trace.tokens == (30, 2)
    assert trace.seconds == 0.25 and trace.user_id == "u1"
    trace.spans.pop()
    assert trace.status == "tool_error" and trace.seconds is None
    assert traces.new_trace([]).status == "no_query"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["trace_id"], None, "trace_id: Input should be a valid string"),
        (["spans"], {}, "spans: Input should be a valid list"),
        (["extra"], 1, "extra: Extra inputs are not permitted"),
        (["user_id"], 7, "user_id: Input should be a valid string"),
        (["feedback"], {"verdict": 1}, r"feedback\.verdict: "),
        (["spans", 0], "x", r"spans\[0\]: Input should be a valid dictionary"),
        (["spans", 0, "kind"], "agent", r"spans\[0\]\.kind: .* 'llm' or 'tool'"),
        (["spans", 0, "seconds"], "1", r"spans\[0\]\.seconds: "),
        (
            ["spans", 0, "attributes", traces.INPUT],
            [{"role": "user"}],
            r"messages\[0\]\.content: Field required",
        ),
        (["spans", 1, "attributes", traces.RESULT], "rows", r"result: .* dictionary"),
    ],
)
def test_from_dict_names_the_wrong_key(path, value, named):
    d = deepcopy(RAW[0])
    place = d
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=named):
        Trace.from_dict(d)
    for key in ("trace_id", "time", "spans"):
        with pytest.raises(ValueError, match=f"{key}: Field required"):
            Trace.from_dict({k: v for k, v in RAW[0].items() if k != key})


def test_malformed_lines_are_numbered_and_skipped(tmp_path):
    good = [json.dumps(d, ensure_ascii=False).encode() for d in RAW[:3]]
    lines = [
        b"\xef\xbb\xbf" + good[0],
        b"",
        good[1],
        b"not json",
        b'{"trace_id": "\xff"}',
        b"[1]",
        b"[" * 100_000,
        good[0],
        b'{"trace_id": "nobody", "feedback": {"verdict": "approved"}}',
        b'{"trace_id": [], "feedback": {"verdict": "approved"}}',
        good[2],
        b'{"trace_id": "nobody", "feedback": {"comment": "no verdict"}}',
        good[2][:200],
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    with pytest.warns(traces.SkippedLines) as caught:
        found, bad = traces.read(path)
    assert [t.trace_id for t in found] == [d["trace_id"] for d in RAW[:3]]
    assert [b.number for b in bad] == [4, 5, 6, 7, 8, 9, 10, 12, 13]
    reasons = [b.reason for b in bad]
    parts = ["Expecting value", "can't decode", "should be a JSON object", "recursion"]
    parts += ["came before", "not here", "trace_id: Input should be a valid string"]
    parts += ["feedback.verdict: Field required", "Unterminated"]
    assert all(part in reason for part, reason in zip(parts, reasons, strict=True))
    assert bad[0].text == "not json" and len(bad[3].text) == 80
    message = str(caught[0].message)
    assert len(caught) == 1 and "9 of 13 lines skipped: line 4: " in message
    assert str(path) in message and message.endswith("; ...")


SEEDS = [RAW[0], json.loads((FIXTURES / "otel_genai.json").read_text())]
for name in ("openai_chat.jsonl", "anthropic_messages.jsonl"):
    SEEDS += map(json.loads, (FIXTURES / name).read_text().splitlines())


def places(value, path=()):
    """The path of every part of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from places(part, (*path, key))


@pytest.mark.parametrize("turn", range(2))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_record_with_one_odd_part_is_read_or_reported(tmp_path, turn):
    file, odds = tmp_path / "odd.json", [None, True, "x", [], [1], {"x": [0.5]}, {}]
    for seed in SEEDS:
        for number, (*path, last) in enumerate(list(places(seed))[1:], start=turn):
            record = deepcopy(seed)
            place = record
            for key in path:
                place = place[key]
            place[last] = odds[number % len(odds)]
            file.write_text(json.dumps(record))
            found, bad = traces.load(file)
            # An export may hold no model call.
            assert found or bad or "resourceSpans" in record
            for trace in found:
                values = {name: getattr(trace, name) for name in PROPERTIES}
                text = (values["question"], values["reply"], values["status"])
                assert all(isinstance(part, str) for part in text)
                assert Trace.from_dict(json.loads(json.dumps(trace.to_dict())))


def test_append_survives_a_cut_last_line_and_odd_characters(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    odd = traces.new_trace([call("line\u2028sep \x85 \r\n \ud800 é 中")])
    traces.append(path, odd)
    with path.open("ab") as file:
        file.write(b'{"trace_id": "cut')
    last = traces.new_trace([call()])
    traces.append(path, last)
    with pytest.warns(traces.SkippedLines, match="line 2"):
        found, bad = traces.read(path)
    assert found == [odd, last] and [b.number for b in bad] == [2]
    last.spans.append(tool({"sql": ""}, ["not", "a", "dict"]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="result: Input should be a valid dictionary"):
        traces.append(path, last)
    assert path.read_bytes() == before


@pytest.mark.timeout(600)
def test_threads_and_processes_append_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import sys; from utils.logs import traces\n"
        "chat = [{'role': 'user', 'content': 'é' * 20_000}]\n"
        "for i in range(100):\n"
        "    s = traces.span('llm', 'x', {traces.INPUT: chat})\n"
        "    traces.append(sys.argv[1], traces.new_trace([s]))\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        new = [traces.new_trace([call("y" * 5000)]) for _ in range(200)]
        list(pool.map(lambda trace: traces.append(path, trace), new))
    assert [process.wait(500) for process in running] == [0, 0]
    found, bad = traces.read(path)
    assert len(found) == 400 and bad == []


def test_feedback_joins_its_trace(tmp_path):
    path = tmp_path / "log.jsonl"
    one = traces.new_trace([call(**{"gen_ai.response.id": "chatcmpl-7"})])
    two = traces.new_trace([call()])
    traces.append(path, one)
    traces.append(path, two)
    traces.feedback(path, "chatcmpl-7", "thumbs_down", "user")
    traces.feedback(path, two.trace_id, "approved", source="analyst")
    traces.feedback(
        path, one.trace_id, "corrected", "analyst", comment="tests", sql="SELECT 1"
    )
    (first, second), bad = traces.read(path)
    corrected = {"source": "analyst", "verdict": "corrected", "comment": "tests"}
    assert first.feedback == corrected | {"sql": "SELECT 1"} and not bad
    assert second.feedback == {"source": "analyst", "verdict": "approved"}
    with pytest.raises(ValueError, match="verdict should be one of"):
        traces.feedback(path, one.trace_id, "good", "user")


def test_to_messages():
    asked, said = {"role": "user", "content": "q?"}, "SELECT 1"
    answer = {"role": "assistant", "content": said}
    old = {traces.INPUT: [{"role": "system", "content": "Old."}, asked]}
    prompted = traces.new_trace([call(reply=said, **old)])
    assert traces.to_messages(prompted) == [*old[traces.INPUT], answer]

    chat = [asked, answer, {"role": "user", "content": "no such table"}]
    retried = traces.new_trace([call(), call(reply="fixed", **{traces.INPUT: chat})])
    assert traces.to_messages(retried)[:3] == chat
    corrected = traces.to_messages(retried, answer="best")
    assert corrected == [asked, answer | {"content": "best"}]

    failed = traces.new_trace([call(reply="par", **{"error.type": "incomplete"})])
    for trace in (failed, traces.new_trace([call(reply="")]), traces.new_trace([])):
        with pytest.raises(ValueError, match="no question, or no complete reply"):
            traces.to_messages(trace)
    assert traces.to_messages(failed, answer="whole")[-1]["content"] == "whole"
    with pytest.raises(ValueError, match="no question"):
        traces.to_messages(traces.new_trace([]), answer="x")


# The collect-now kit


def client_of(create):
    """A client that has only what the kit needs."""
    completions = SimpleNamespace(create=create)
    return SimpleNamespace(chat=SimpleNamespace(completions=completions))


def ask(client, question="How many?", **more):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="m", messages=messages, **more)


@pytest.fixture
def real(chat_server, tmp_path):
    """A real client of a server on loopback, recorded, and its log."""
    client = openai.OpenAI(base_url=chat_server.url, api_key="secret", max_retries=0)
    with client:
        yield record.record(client, tmp_path / "log.jsonl"), tmp_path / "log.jsonl"


def test_the_real_client_over_the_wire(real):
    client, path = real
    response = ask(client, temperature=0)
    chat = [{"role": "user", "content": "How many?"}, response.choices[0].message]
    chat.append({"role": "user", "content": "And in June?"})
    client.chat.completions.create(model="m", messages=chat, top_p=openai.omit)
    (first, second), bad = traces.read(path)
    assert (first.question, first.reply) == ("How many?", "hello") and not bad
    assert second.question == "And in June?" and second.tokens == (11, 7)
    attributes = second.spans[0]["attributes"]
    assert attributes[traces.INPUT][1] == {"role": "assistant", "content": "hello"}
    assert "gen_ai.request.top_p" not in attributes
    assert first.spans[0]["attributes"]["gen_ai.request.temperature"] == 0
    assert "secret" not in path.read_text()


@pytest.mark.parametrize(
    ("entry", "error", "status"),
    [
        (429, openai.RateLimitError, "rate_limit"),
        (503, openai.InternalServerError, "overloaded"),
        (401, openai.AuthenticationError, "AuthenticationError"),
        (1.0, openai.APITimeoutError, "timeout"),
    ],
)
def test_errors_of_the_real_client(real, chat_server, entry, error, status):
    client, path = real
    chat_server.script = [entry]
    with pytest.raises(error):
        ask(client, timeout=0.3 if status == "timeout" else 60)
    (trace,), _ = traces.read(path)
    assert trace.status == status and trace.reply == ""


@pytest.mark.parametrize("left_early", [False, True])
def test_a_stream_of_the_real_client(real, chat_server, left_early):
    client, path = real
    chunks = [{"choices": [{"index": 0, "delta": {"content": c}}]} for c in "abc"]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    chunks.append({"choices": [], "usage": usage})
    head = {"id": "s1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    lines = [json.dumps(head | c) for c in chunks] + ["[DONE]"]
    chat_server.script = ["".join(f"data: {line}\n\n" for line in lines).encode()]
    with ask(client, stream=True) as stream:
        assert next(stream).choices[0].delta.content == "a" and not path.exists()
        if not left_early:
            assert len(list(stream)) == 3
    del stream
    gc.collect()
    (trace,), _ = traces.read(path)
    told = (trace.reply, trace.tokens, trace.status)
    whole = ("abc", (5, 3), "no_query")
    assert told == (("a", (0, 0), "incomplete") if left_early else whole)


def test_what_cannot_be_recorded_is_one_warning_and_goes_through(tmp_path):
    odd = object()
    client = record.record(client_of(lambda **_: odd), tmp_path / "log.jsonl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert all(ask(client) is odd for _ in range(3))
    assert len(caught) == 1 and "unrecorded" in str(caught[0].message)
    with pytest.raises(TypeError, match="asynchronous"):
        record.record(openai.AsyncOpenAI(api_key="x"), tmp_path / "log.jsonl")


# Foreign logs


def test_openai_log(tmp_path):
    found, bad = traces.load(FIXTURES / "openai_chat.jsonl", "openai")
    assert len(found) == 5 and not bad
    plain, asked, told, image, limited = found
    assert plain.question == "decaf net sales, all time" and "```sql" in plain.reply
    assert (plain.tokens, plain.seconds, plain.user_id) == ((548, 61), 1.84, "u09")
    assert plain.time == "2026-07-06T09:00:12"
    attributes = plain.spans[0]["attributes"]
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 512
    assert attributes[traces.INPUT][0]["role"] == "system"

    assert [s["kind"] for s in asked.spans] == ["llm", "tool"] and asked.result is None
    assert traces.to_messages(asked)[-1]["tool_calls"][0]["type"] == "function"
    assert [s["kind"] for s in told.spans] == ["tool", "llm"]
    assert told.result == {"rows": [[103]], "error": None}
    assert list(told.arguments) == ["sql"] and told.status == "answered"
    assert told.reply == "103 customers have bought by phone."
    roles = [m["role"] for m in traces.to_messages(told, answer="104")]
    assert roles == ["system", "user", "assistant"]
    assert image.question == "What does this chart show?\n[image_url]"
    assert limited.status == "rate_limit" and limited.time == "2026-07-06T09:20:31"

    traces.write(tmp_path / "ours.jsonl", found)
    assert traces.read(tmp_path / "ours.jsonl") == (found, [])


def test_tool_calls_of_earlier_turns_are_not_counted_again():
    turn = json.loads((FIXTURES / "openai_chat.jsonl").read_text().splitlines()[2])
    chat = turn["request"]["messages"]
    chat += [{"role": "assistant", "content": "103."}]
    chat += [{"role": "user", "content": "And by mail?"}]
    trace = Trace.from_dict(importers.openai(turn))
    assert trace.question == "And by mail?" and trace.status == "no_query"


def test_anthropic_log():
    found, bad = traces.load(FIXTURES / "anthropic_messages.jsonl", "anthropic")
    assert len(found) == 4 and not bad
    plain, looped, asked, failed = found
    # 31 fresh, 510 written to the cache: OpenTelemetry counts both as input.
    assert plain.tokens == (541, 42) and plain.user_id == "u14"
    attributes = plain.spans[0]["attributes"]
    assert [m["role"] for m in attributes[traces.INPUT]] == ["system", "user"]
    assert looped.tokens == (736, 12) and looped.question == "late shipments by region?"
    assert [s["kind"] for s in looped.spans] == ["tool", "tool", "llm"]
    first = looped.spans[0]["attributes"]
    assert first[traces.RESULT] == {"error": "no such column: is_late"}
    assert looped.result["rows"][0] == ["northeast", 41]
    assert "Two regions came back" not in json.dumps(looped.to_dict())  # thinking
    assert "2026-05" in asked.arguments["sql"] and asked.result is None
    assert failed.status == "overloaded" and failed.tokens == (0, 0)


def test_opentelemetry_export():
    found, bad = traces.load(FIXTURES / "otel_genai.json", "otel")
    assert len(found) == 4 and not bad
    loop, structured, limited, broken = found
    # The web request and the agent's summary span are no calls and add no tokens.
    assert [s["kind"] for s in loop.spans] == ["llm", "tool", "llm"]
    assert loop.question == "How many grocers have ever bought by phone?"
    assert loop.tokens == (1180, 75) and loop.reply.startswith("36 grocers")
    assert loop.result == {"rows": [[36]], "error": None}
    assert (loop.session_id, loop.user_id) == ("u28-0701", "u28")
    assert loop.status == "answered" and loop.time.startswith("2026-07-06T08:02")
    roles = [m["role"] for m in traces.to_messages(loop)]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert structured.question == "decaf net sales last quarter?"
    assert "```sql" in structured.reply and structured.user_id == "u09"
    assert limited.status == "rate_limit" and limited.question.startswith("orders")
    assert broken.result == {"error": 'near "SELEC": syntax error'}
    assert broken.status == "tool_error"


def export(**attributes):
    """An OTLP document of one span with these attributes, all text."""
    pairs = [{"key": k, "value": {"stringValue": v}} for k, v in attributes.items()]
    ids = {"traceId": "a" * 32, "spanId": "b" * 16, "name": "chat m"}
    times = {"startTimeUnixNano": "1783324931000000000"}
    times["endTimeUnixNano"] = "1783324932500000000"
    span = ids | times | {"attributes": pairs}
    return span, {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def test_an_opentelemetry_trace_may_span_lines_and_lack_tool_spans(tmp_path):
    asked = {"type": "tool_call", "id": "1", "name": "f", "arguments": {"x": 1}}
    result = {"type": "tool_call_response", "id": "1", "response": "three"}
    chat = [
        {"role": "user", "parts": [{"type": "text", "content": "q?"}]},
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "h"}, asked]},
        {"role": "tool", "parts": [result]},
    ]
    said = [{"role": "assistant", "parts": [{"type": "text", "content": "3"}]}]
    messages = {traces.INPUT: json.dumps(chat), traces.OUTPUT: json.dumps(said)}
    _, late = export(**{"gen_ai.operation.name": "chat", "session.id": "x"} | messages)
    broken, bad = export()
    broken["startTimeUnixNano"] = "soon"
    root, first = export(**{"session.id": "s9", "user.id": "u1"})
    root["startTimeUnixNano"] = "1783324930000000000"
    path = tmp_path / "export.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (late, bad, first)))
    with pytest.warns(traces.SkippedLines, match="line 2: invalid literal"):
        (trace,), _ = traces.load(path)
    assert trace.session_id == "s9" and trace.time == "2026-07-06T08:02:10"
    assert [s["kind"] for s in trace.spans] == ["tool", "llm"] and trace.seconds == 1.5
    assert trace.arguments == {"x": 1} and trace.result == {"text": "three"}
    assert trace.status == "answered" and trace.reply == "3"


def test_model_calls_without_messages_are_kept_and_told_of(tmp_path):
    span, document = export(**{"gen_ai.operation.name": "chat"})
    span["status"] = {"code": "STATUS_CODE_ERROR"}
    (tmp_path / "export.json").write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="1 model calls have no messages"):
        (trace,), bad = traces.load(tmp_path / "export.json")
    assert trace.seconds == 1.5 and trace.question == "" and not bad
    assert trace.status == "_OTHER"


def test_auto_takes_every_format_in_one_list(tmp_path):
    records = [RAW[0]]
    for name in ("openai_chat.jsonl", "anthropic_messages.jsonl"):
        records += map(json.loads, (FIXTURES / name).read_text().splitlines())
    records.append(json.loads((FIXTURES / "otel_genai.json").read_text()))
    records.append({"request": {"messages": []}, "response": {}})
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(records, indent=1))
    with pytest.warns(traces.SkippedLines, match="line 12: the record has no messages"):
        found, bad = traces.load(path)
    assert len(found) == 1 + 5 + 4 + 4 and len(bad) == 1
    with pytest.raises(ValueError, match="format should be one of"):
        traces.load(path, "csv")


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("APITimeoutError", "", "timeout"),
        ("rate_limit_exceeded", "", "rate_limit"),
        ("InternalServerError", 529, "overloaded"),
        ("insufficient_quota", "", "insufficient_quota"),
        ("Something broke", "", "_OTHER"),
    ],
)
def test_error_types(name, status, word):
    assert importers.error_type(name, status) == word


def test_times():
    assert importers.timestamp("2026-07-06T11:20:31+02:00") == "2026-07-06T09:20:31"
    assert importers.timestamp(1783329631999) == "2026-07-06T09:20:31"
