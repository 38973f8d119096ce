"""Traces: the course's log, feedback, the collect-now kit, one test a foreign shape."""

import gc
import json
import subprocess
import sys
import warnings
from collections import Counter
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from utils.logs import record, traces

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "traces.jsonl"
FIXTURES = ROOT / "data" / "foreign_logs"
RAW = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def call(question="q?", reply="a.", **attributes):
    """An `llm` span."""
    attributes = {
        traces.INPUT: [{"role": "user", "content": question}],
        traces.OUTPUT: [{"role": "assistant", "content": reply}] if reply else [],
    } | attributes
    return traces.span("llm", "chat m", attributes)


# A trace and its file


def test_every_trace_of_the_course_survives_the_round_trip(tmp_path):
    found, bad = traces.read(DATA)
    assert [t.to_dict() for t in found] == RAW and bad == []
    traces.write(tmp_path / "copy.jsonl", found)
    assert (tmp_path / "copy.jsonl").read_bytes() == DATA.read_bytes()
    statuses = {"answered": 1348, "no_query": 23, "timeout": 7}
    statuses |= {"rate_limit": 5, "overloaded": 3}
    assert Counter(t.status for t in found) == statuses
    reviewed = [t for t in found if t.verdict in ("approved", "corrected")]
    chats = [traces.to_messages(t, answer=t.feedback.get("sql")) for t in reviewed]
    assert len(chats) == 814
    assert {tuple(m["role"] for m in c) for c in chats} == {("user", "assistant")}


def test_malformed_lines_are_numbered_and_skipped(tmp_path):
    good = [json.dumps(d, ensure_ascii=False).encode() for d in RAW[:3]]
    lines = [b"\xef\xbb\xbf" + good[0], b"", good[1]]
    lines += [b"not json", b'{"trace_id": "\xff"}', b"[1]", b"[" * 100_000, good[0]]
    lines += [b'{"trace_id": "nobody", "feedback": {"verdict": "approved"}}']
    lines += [b'{"trace_id": [], "feedback": {"verdict": "approved"}}', good[2]]
    lines += [b'{"trace_id": "x", "feedback": {"comment": ""}}', good[2][:200]]
    odd = deepcopy(RAW[3])
    odd["spans"][0]["kind"] = "agent"
    lines.append(json.dumps(odd).encode())
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\r\n".join(lines))
    with pytest.warns(traces.SkippedLines, match="10 of 14 lines skipped: line 4: "):
        found, bad = traces.read(path)
    assert [t.trace_id for t in found] == [d["trace_id"] for d in RAW[:3]]
    assert [b.number for b in bad] == [4, 5, 6, 7, 8, 9, 10, 12, 13, 14]
    assert "spans[0].kind: " in bad[-1].reason


@pytest.mark.timeout(600)
def test_processes_append_whole_lines_whatever_they_hold(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    code = """if True:
        import sys; from utils.logs import traces
        chat = [{'role': 'user', 'content': 'é' * 20_000}]
        for i in range(100):
            s = traces.span('llm', 'x', {traces.INPUT: chat})
            traces.append(sys.argv[1], traces.new_trace([s]))
    """
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(500) for process in running] == [0, 0]
    # A writer that was cut off spoils its own line. Two at once may leave blank ones.
    with path.open("ab") as file:
        file.write(b'{"trace_id": "cut')
    odd = traces.new_trace([call("line\u2028sep \x85 \r\n \ud800 é 中")])
    traces.append(path, odd)
    with pytest.warns(traces.SkippedLines, match="1 of .* lines skipped: line"):
        found, _ = traces.read(path)
    assert len(found) == 201 and found[-1] == odd


def test_feedback_joins_its_trace(tmp_path):
    path = tmp_path / "log.jsonl"
    one = traces.new_trace([call(**{"gen_ai.response.id": "chatcmpl-7"})])
    two = traces.new_trace([call()])
    traces.append(path, one)
    traces.append(path, two)
    traces.feedback(path, "chatcmpl-7", "thumbs_down", "user")
    traces.feedback(path, two.trace_id, "approved", source="analyst")
    better = {"comment": "tests", "sql": "SELECT 1"}
    traces.feedback(path, one.trace_id, "corrected", "analyst", **better)
    (first, second), bad = traces.read(path)
    assert not bad
    assert first.feedback == {"source": "analyst", "verdict": "corrected"} | better
    assert second.feedback == {"source": "analyst", "verdict": "approved"}


def test_to_messages():
    asked, said = {"role": "user", "content": "q?"}, "SELECT 1"
    answer = {"role": "assistant", "content": said}
    old = {traces.INPUT: [{"role": "system", "content": "Old."}, asked]}
    prompted = traces.new_trace([call(reply=said, **old)])
    assert traces.to_messages(prompted) == [*old[traces.INPUT], answer]
    chat = [asked, answer, {"role": "user", "content": "no such table"}]
    retried = traces.new_trace([call(), call(reply="fixed", **{traces.INPUT: chat})])
    assert traces.to_messages(retried)[:3] == chat
    best = answer | {"content": "best"}
    assert traces.to_messages(retried, answer="best") == [asked, best]
    failed = traces.new_trace([call(reply="par", **{"error.type": "incomplete"})])
    for trace in (failed, traces.new_trace([call(reply="")]), traces.new_trace([])):
        with pytest.raises(ValueError, match="no question, or no complete reply"):
            traces.to_messages(trace)


# The collect-now kit


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


def test_an_error_is_recorded_and_raised(real, chat_server):
    client, path = real
    chat_server.script = [429]
    with pytest.raises(openai.RateLimitError):
        ask(client)
    chat_server.script = [1.0]
    with pytest.raises(openai.APITimeoutError):
        ask(client, timeout=0.3)
    found, _ = traces.read(path)
    assert [trace.status for trace in found] == ["rate_limit", "timeout"]


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
    completions = SimpleNamespace(create=lambda **_: odd)
    bare = SimpleNamespace(chat=SimpleNamespace(completions=completions))
    client = record.record(bare, tmp_path / "log.jsonl")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert all(ask(client) is odd for _ in range(3))
    assert len(caught) == 1 and "unrecorded" in str(caught[0].message)


# Foreign logs: one file of each shape


def test_openai_log(tmp_path):
    found, bad = traces.load(FIXTURES / "openai_chat.jsonl")
    assert len(found) == 5 and not bad
    plain, asked, told, image, limited = found
    assert plain.question == "decaf net sales, all time" and "```sql" in plain.reply
    assert (plain.tokens, plain.seconds, plain.user_id) == ((548, 61), 1.84, "u09")
    assert plain.time == "2026-07-06T09:00:12"
    assert [s["kind"] for s in asked.spans] == ["llm", "tool"] and asked.result is None
    assert [s["kind"] for s in told.spans] == ["tool", "llm"]
    assert told.result == {"rows": [[103]], "error": None}
    assert list(told.arguments) == ["sql"] and told.status == "answered"
    assert image.question == "What does this chart show?\n[image_url]"
    assert limited.status == "rate_limit" and limited.time == "2026-07-06T09:20:31"
    traces.write(tmp_path / "ours.jsonl", found)
    assert traces.read(tmp_path / "ours.jsonl") == (found, [])


def test_anthropic_log():
    found, bad = traces.load(FIXTURES / "anthropic_messages.jsonl")
    assert len(found) == 4 and not bad
    plain, looped, asked, failed = found
    # 31 fresh, 510 written to the cache: OpenTelemetry counts both as input.
    assert plain.tokens == (541, 42) and plain.user_id == "u14"
    assert looped.tokens == (736, 12) and looped.question == "late shipments by region?"
    assert [s["kind"] for s in looped.spans] == ["tool", "tool", "llm"]
    assert looped.result["rows"][0] == ["northeast", 41]
    assert "Two regions came back" not in json.dumps(looped.to_dict())  # thinking
    assert "2026-05" in asked.arguments["sql"] and asked.result is None
    assert failed.status == "overloaded" and failed.tokens == (0, 0)


def test_opentelemetry_export():
    found, bad = traces.load(FIXTURES / "otel_genai.json")
    assert len(found) == 4 and not bad
    loop, structured, limited, broken = found
    # The web request and the agent's summary span are no calls and add no tokens.
    assert [s["kind"] for s in loop.spans] == ["llm", "tool", "llm"]
    assert loop.question == "How many grocers have ever bought by phone?"
    assert loop.tokens == (1180, 75) and loop.reply.startswith("36 grocers")
    assert (loop.session_id, loop.user_id) == ("u28-0701", "u28")
    assert loop.status == "answered" and loop.time.startswith("2026-07-06T08:02")
    assert structured.question == "decaf net sales last quarter?"
    assert limited.status == "rate_limit" and limited.question.startswith("orders")
    assert broken.result == {"error": 'near "SELEC": syntax error'}
    assert broken.status == "tool_error"
