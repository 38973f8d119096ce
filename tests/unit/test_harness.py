"""The harness: every way to fail is a named status, and no question is lost."""

import json
import os
import signal
import time

import openai
import pytest
from chat_server import completion

from utils import tidewater
from utils.evals.harness import (
    STATUSES,
    ApiModel,
    Assistant,
    RecordedModel,
    live_model,
)
from utils.evals.types import ModelError, Reply
from utils.logs import record as collect
from utils.logs import traces

SQL = "Counting.\n```sql\nSELECT COUNT(*) FROM tickets;\n```"
BROKEN = "```sql\nSELECT total FROM nowhere\n```"


@pytest.fixture
def tool(pool):
    return tidewater.SqlTool(pool)


def api(server, **settings):
    settings = {"model": "m", "api_key": "k", "max_retries": 0} | settings
    return ApiModel(base_url=server.url, **settings)


def test_an_answer_over_http_becomes_a_trace(chat_server, tool):
    chat_server.script = [SQL]
    trace = Assistant(api(chat_server), "the prompt", tool).ask("How many tickets?")
    assert trace.status == "answered"
    assert trace.question == "How many tickets?"
    assert trace.result == {"rows": [[1400]], "error": None}
    assert trace.tokens == (11, 7)
    assert trace.seconds > 0
    assert [s["kind"] for s in trace.spans] == ["llm", "tool"]
    (asked,) = chat_server.requests
    assert [m["role"] for m in asked["messages"]] == ["system", "user"]
    assert asked["messages"][0]["content"] == "the prompt"
    assert chat_server.keys == ["Bearer k"]


def test_model_url_and_key_come_from_the_environment(chat_server, tool, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", chat_server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    monkeypatch.setenv("MODEL", "env-model")
    trace = Assistant(ApiModel(), "p", tool).ask("hi")
    assert trace.status == "no_query"
    assert chat_server.requests[0]["model"] == "env-model"
    assert chat_server.keys == ["Bearer from-env"]


def test_a_retry_shows_the_model_its_error(chat_server, tool):
    chat_server.script = [BROKEN, SQL]
    trace = Assistant(api(chat_server), "p", tool).ask("How many tickets?")
    assert trace.status == "answered"
    assert [s["kind"] for s in trace.spans] == ["llm", "tool", "llm", "tool"]
    assert "no such table" in chat_server.requests[1]["messages"][-1]["content"]
    assert trace.tokens == (22, 14)
    # The first span keeps the messages that it saw.
    assert len(trace.spans[0]["attributes"]["gen_ai.input.messages"]) == 1


def test_retries_end(chat_server, tool):
    chat_server.script = [BROKEN]
    trace = Assistant(api(chat_server), "p", tool).ask("q")
    assert trace.status == "tool_error"
    assert len(chat_server.requests) == 2
    once = Assistant(api(chat_server), "p", tool, max_retries=0)
    assert once.ask("q").spans[2:] == []


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (401, "model_error"),
        (403, "model_error"),
        (404, "model_error"),
        (400, "model_error"),
        (429, "rate_limit"),
        (500, "overloaded"),
        (503, "overloaded"),
        (10.0, "timeout"),
        ("", "no_query"),
        ("   \n", "no_query"),
        (completion(None), "no_query"),
        ("no query here", "no_query"),
        ("```python\nprint()\n```", "no_query"),
        (completion("```sql\nSELECT 1", finish_reason="length"), "truncated"),
        (completion(None, finish_reason="length"), "truncated"),
        (b"<html>502</html>", "model_error"),
        ({"choices": []}, "model_error"),
        ({"detail": "what?"}, "model_error"),
    ],
)
def test_each_failure_has_a_name(chat_server, tool, script, status):
    chat_server.script = [script]
    timeout = 0.5 if script == 10.0 else 60
    trace = Assistant(api(chat_server, timeout=timeout), "p", tool).ask("the question")
    assert trace.status == status
    assert status in STATUSES
    assert trace.question == "the question"
    assert traces.Trace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace


def test_no_key_no_server(tool):
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        ApiModel(model="m")

    def ask(model):
        trace = Assistant(model, "p", tool).ask("q")
        return trace.status, trace.spans[0]["attributes"]["error.message"]

    closed = ApiModel("m", "http://127.0.0.1:9/v1", "k", timeout=2, max_retries=0)
    status, message = ask(closed)
    assert status == "unreachable" and "127.0.0.1:9" in message
    status, message = ask(ApiModel("m", "no url at all", "k", max_retries=0))
    assert status in ("unreachable", "model_error") and message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_without_the_proxy(
    chat_server, monkeypatch, host
):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    url = chat_server.url.replace("127.0.0.1", host)
    model = ApiModel("m", url, "k", max_retries=0)
    assert model([{"role": "user", "content": "q"}]).text == "hello"
    # Any other server is asked through the proxy.
    away = ApiModel("m", "http://192.0.2.1/v1", "k", timeout=30, max_retries=0)
    with pytest.raises(ModelError) as caught:
        away([{"role": "user", "content": "q"}])
    assert caught.value.status == "unreachable"


def test_live_model_needs_both_a_key_and_a_model(monkeypatch):
    assert live_model() is None
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert live_model() is None  # a developer's key alone must not be billed
    monkeypatch.setenv("MODEL", "m")
    assert live_model().name == "m"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert live_model() is None  # MODEL alone may be meant for something else
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not"):
        live_model()


def test_a_model_can_pose_as_an_openai_client(tmp_path):
    client = collect.as_client(lambda messages: Reply(f"to {messages[-1]}", 5, 2))
    client = collect.record(client, tmp_path / "log.jsonl", user_id="u")
    asked = [{"role": "user", "content": "hi"}]
    response = client.chat.completions.create(model="m", messages=asked)
    assert response.choices[0].message.content == f"to {asked[-1]}"
    (trace,), bad = traces.read(tmp_path / "log.jsonl")
    assert (trace.question, trace.tokens, trace.user_id) == ("hi", (5, 2), "u")
    assert not bad


def test_the_sdk_retries_after_a_429(chat_server, tool):
    chat_server.script = [429, SQL]
    trace = Assistant(api(chat_server, max_retries=1), "p", tool).ask("q")
    assert trace.status == "answered"
    assert len(chat_server.requests) == 2


def test_cached_tokens_and_missing_usage_are_kept_as_told(chat_server, tool):
    told = completion(SQL, prompt_tokens_details={"cached_tokens": 8})
    untold = completion(SQL) | {"usage": None}
    chat_server.script = [told, untold]
    assistant = Assistant(api(chat_server), "p", tool)
    first, second = assistant.ask("q"), assistant.ask("q")
    key = "gen_ai.usage.cache_read.input_tokens"
    assert first.spans[0]["attributes"][key] == 8
    assert "gen_ai.usage.input_tokens" not in second.spans[0]["attributes"]
    assert second.tokens == (0, 0)


@pytest.mark.parametrize("answer", [ZeroDivisionError("oops"), None, "a text"])
def test_a_model_that_breaks_or_returns_nonsense_loses_nothing(tool, answer):
    def broken(messages):
        if isinstance(answer, Exception):
            raise answer
        return answer

    trace = Assistant(broken, "p", tool).ask("q")
    assert (trace.status, trace.question) == ("model_error", "q")
    assert trace.spans[0]["attributes"]["error.message"]


def test_a_tool_that_breaks_or_returns_nonsense_loses_nothing(tool, tmp_path):
    class Odd(tidewater.SqlTool):
        extracted, ran = {"sql": "SELECT 1"}, {"error": None}

        def extract(self, reply):
            if isinstance(self.extracted, Exception):
                raise self.extracted
            return self.extracted

        def run(self, arguments):
            if isinstance(self.ran, Exception):
                raise self.ran
            return self.ran

    def status(**how):
        odd = type("Odd", (Odd,), how)(tool.pool)
        trace = Assistant(lambda m: Reply("x"), "p", odd).ask("q")
        traces.append(tmp_path / "log.jsonl", trace)
        assert traces.read(tmp_path / "log.jsonl")[0][-1].to_dict() == trace.to_dict()
        return trace.status

    assert status() == "answered"
    assert status(extracted=ValueError("no JSON")) == "no_query"
    assert status(ran=RuntimeError("disk gone")) == "tool_error"
    assert status(ran=None) == "tool_error"
    assert status(ran={"error": None, "rows": [[float("inf")]]}) == "tool_error"
    assert status(ran={"error": None, "rows": [[b"blob"]]}) == "answered"


@pytest.mark.parametrize(
    ("value", "shown"), [("x'ff'", "ff"), ("9e999", "inf"), ("NULL", None)]
)
def test_what_json_lacks_reaches_the_log_as_text(tool, value, shown):
    model = RecordedModel({"q": Reply(f"```sql\nSELECT {value}\n```")}, "p")
    trace = Assistant(model, "p", tool).ask("q")
    assert trace.result == {"rows": [[shown]], "error": None}
    assert json.loads(json.dumps(trace.to_dict())) == trace.to_dict()


def test_a_recording_knows_its_questions_and_its_prompt(pool):
    model = tidewater.recorded_model("launch")
    asked = [{"role": "system", "content": tidewater.load_prompt("launch")}]
    case = tidewater.load_cases(n=1)[0]
    reply = model([*asked, {"role": "user", "content": case["question"]}])
    assert "```sql" in reply.text and reply.seconds is None
    for messages in (
        [*asked, {"role": "user", "content": "never asked"}],
        [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}],
    ):
        with pytest.raises(ModelError) as caught:
            model(messages)
        assert caught.value.status == "not_recorded"


def test_ask_all_keeps_order(chat_server, tool):
    chat_server.script = [0.01, SQL]
    questions = [f"question {i}" for i in range(12)]
    answered = Assistant(api(chat_server), "p", tool).ask_all(questions, workers=4)
    assert [trace.question for trace in answered] == questions


def test_ctrl_c_asks_no_more(tool):
    asked = []

    def model(messages):
        asked.append(messages)
        if len(asked) == 3:
            time.sleep(2)  # by now all questions have been handed out
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return Reply("no query")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Assistant(model, "p", tool).ask_all(["q"] * 200, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(asked) < 150


@pytest.mark.parametrize(
    ("reply", "sql"),
    [
        ("```sql\nSELECT 1;\n```", "SELECT 1"),
        ("```SQL\nSELECT 1\n```", "SELECT 1"),
        ("```sql\r\nSELECT 1\r\n```", "SELECT 1"),
        ("```sqlite\nSELECT 1 ; \n``` as asked", "SELECT 1"),
        ("first\n```sql\nSELECT 1\n```\nbetter\n```sql\nSELECT 2\n```", "SELECT 2"),
        ("SELECT 1", None),
        ("```\nSELECT 1\n```", None),
        ("```sql\nSELECT 1", None),
        # A tuned model sends the query and nothing else.
        ("select 1 from customers", "select 1 from customers"),
        (
            " WITH a AS (SELECT 1) SELECT 2 FROM a ",
            "WITH a AS (SELECT 1) SELECT 2 FROM a",
        ),
        ("Select a region from the list.\nThen ask again.", None),
        ("You could select it from customers", None),
    ],
)
def test_the_query_is_the_last_fenced_block(reply, sql):
    assert tidewater.extract_sql(reply) == sql


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="caveman"):
        tidewater.load_prompt("shout")
    with pytest.raises(ValueError, match="practice"):
        tidewater.load_cases("train")
