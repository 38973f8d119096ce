"""The collect-now kit: every door of a client is recorded, or warns once."""

import asyncio
import gc
import inspect
import operator
import threading
import warnings
from types import SimpleNamespace

import openai
import pydantic
import pytest
from chat_server import completion, filled, streamed

from utils.evals.types import Reply
from utils.logs import record, traces

ASKED = [{"role": "user", "content": "How many?"}]
BODIES = {"chat": {"messages": ASKED}, "responses": {"input": "How many?"}}
BODIES |= {"completions": {"prompt": "How many?"}}
RAW, STREAMING = "with_raw_response", "with_streaming_response"
CHAT = "chat.completions"
WAYS = ["create", f"{RAW}.create", f"{STREAMING}.create"]
DOORS = [f"{CHAT}.{way}{more}" for way in WAYS for more in ("", " stream")]
DOORS += [
    f"{CHAT}.parse",
    f"{CHAT}.stream",
    f"{CHAT}.{RAW}.parse",
    f"beta.{CHAT}.parse",
]
DOORS += ["responses.create", "responses.create stream", "responses.parse"]
DOORS += ["responses.stream", "completions.create", "completions.create stream"]
DOORS += [f"{RAW}.{CHAT}.create", f"{STREAMING}.responses.create"]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


@pytest.fixture
def client(chat_server, log):
    with plain(chat_server) as client:
        yield record.record(client, log)


def plain(server, kind=openai.OpenAI):
    http = openai.DefaultHttpxClient
    http = openai.DefaultAsyncHttpxClient if kind is openai.AsyncOpenAI else http
    more = {"max_retries": 0, "http_client": http(verify=False)}  # certificates: 50 ms
    return kind(base_url=server.url, api_key="sk-1", **more)


def ask(client, **more):
    return client.chat.completions.create(model="m", messages=ASKED, **more)


def told(path):
    found, _ = traces.read(path)
    return [(trace.question, trace.reply, trace.status) for trace in found]


async def use(client, door):
    """Call a method and read what it gives as a product does, whatever its kind."""
    name, _, streams = door.partition(" ")
    kind = next(part for part in name.split(".") if part in BODIES)
    more = {"stream": True} if streams else {}
    result = operator.attrgetter(name)(client)(model="m", **BODIES[kind], **more)
    result = await result if inspect.isawaitable(result) else result
    if hasattr(result, "http_response"):
        result = result.parse()
    if hasattr(result, "__aenter__"):
        async with result as opened:
            if hasattr(opened, "read"):
                return await opened.read()
            return [piece async for piece in opened]
    if hasattr(result, "__enter__"):
        with result as opened:
            return opened.read() if hasattr(opened, "read") else list(opened)
    return result


@pytest.mark.parametrize("door", DOORS)
def test_every_door_leaves_one_trace(chat_server, tmp_path, door):
    chat_server.zipped = DOORS.index(door) % 2 == 1
    logs = [tmp_path / "sync.jsonl", tmp_path / "async.jsonl"]

    async def use_all():
        with plain(chat_server) as client:
            client.chat  # noqa: B018  what was used before is recorded, too
            bare = await use(client, door)
            recorded = await use(record.record(client, logs[0], user_id="u1"), door)
            await use(client, door)  # the client itself stays as it was
        async with plain(chat_server, openai.AsyncOpenAI) as client:
            twin = record.record(client, logs[1], user_id="u1")
            assert isinstance(twin, openai.AsyncOpenAI)
            return bare, recorded, await use(twin, door)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare, recorded, recorded_async = asyncio.run(use_all())
    assert str(bare) == str(recorded) and type(bare) is type(recorded)
    assert str(recorded_async) == str(recorded) or "Raw" in str(type(recorded))
    for path in logs:
        (trace,), bad = traces.read(path)
        assert told(path) == [("How many?", "hello", "answered")] and not bad
        assert (trace.tokens, trace.user_id) == ((11, 7), "u1") and trace.seconds > 0
        assert "sk-1" not in path.read_text()


def test_copies_azure_post_and_wrapping_twice(chat_server, log, tmp_path):
    azure = {"azure_endpoint": chat_server.url, "api_version": "1", "api_key": "k"}
    with plain(chat_server) as bare, openai.AzureOpenAI(**azure) as cloud:
        client = record.record(bare, log)
        ask(client.copy(timeout=9))
        ask(client.with_options(max_retries=1).with_options(timeout=8))
        ask(record.record(cloud, log))
        twice = record.record(client, tmp_path / "other.jsonl", session_id="s")
        assert len(list(ask(twice, stream=True))) == 3
        # Anthropic's SDK posts in the same way.
        how = {"body": {"model": "m", "messages": ASKED}, "cast_to": object}
        client.post("/v1/messages", **how)
        how["body"]["stream"] = True
        stream = openai.Stream[object]
        list(client.post("/v1/messages", **how, stream=True, stream_cls=stream))
    assert told(log) == [("How many?", "hello", "answered")] * 6
    assert traces.read(tmp_path / "other.jsonl")[0][0].session_id == "s"


def test_settings_are_kept_and_secrets_are_not(client, log):
    hidden = {"type": "mcp", "server_label": "s", "authorization": "hush-1"}
    client.responses.create(model="m", input="q", tools=[hidden])
    settings = {"max_completion_tokens": 5, "temperature": 0, "stop": ["x"]}
    more = {"extra_headers": {"X-Key": "hush-2"}, "top_p": openai.omit}
    ask(client, **settings, **more, extra_body={"api_key": "hush-3", "top_k": 3})
    kept = traces.read(log)[0][1].spans[0]["attributes"]
    assert kept["gen_ai.request.temperature"] == 0 and "hush" not in log.read_text()
    assert all(value in kept.values() for value in (5, ["x"], 3))
    assert not [key for key in kept if "top_p" in key]


def test_errors_are_recorded_and_raised_and_each_try_is_a_trace(chat_server, log):
    async def cancelled():
        async with plain(chat_server, openai.AsyncOpenAI) as client:
            await asyncio.wait_for(ask(record.record(client, log)), 0.2)

    client = record.record(plain(chat_server), log)
    for script, error in [(429, openai.RateLimitError), (1.0, openai.APITimeoutError)]:
        chat_server.script = [script]
        with pytest.raises(error):
            ask(client, timeout=0.3)
    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    chat_server.script = [503, "hello"]
    ask(client.with_options(max_retries=1))
    assert len(chat_server.requests) == 5
    known = ["rate_limit", "timeout", "CancelledError", "overloaded", "answered"]
    assert [status for _, _, status in told(log)] == known


def test_a_reply_that_cannot_be_parsed_is_kept(chat_server, client, log):
    class Number(pydantic.BaseModel):
        count: int

    errors = [pydantic.ValidationError, openai.LengthFinishReasonError]
    chat_server.script = ["no number", completion("{", finish_reason="length")]
    asked = {"model": "m", "messages": ASKED, "response_format": Number}
    for error in errors:
        with pytest.raises(error):
            client.chat.completions.parse(**asked)
    (empty,) = filled("body", "/responses", "", "m")
    chat_server.script = [b"<html>", empty | {"output": []}]
    assert ask(client) == "<html>"
    client.responses.create(model="m", input="q", background=True)
    replies, statuses = list(zip(*told(log), strict=True))[1:]
    assert replies[:2] == ("no number", "{")
    assert statuses == ("answered", "truncated", "not_json", "no_reply")


def test_a_stream_comes_as_early_as_before(chat_server, client, log):
    text = "hel\u2028lo"  # breaks a line for Python, not for a stream of events
    body = streamed(text).replace(rb"\u2028", "\u2028".encode())
    first, *rest = body.partition(b"\n\n")[::2]
    come = threading.Event()
    chat_server.script = [[first + b"\n\n", come, *rest]]
    stream = ask(client, stream=True)
    assert type(stream) is openai.Stream
    assert next(stream).choices[0].delta.content == text and not log.exists()
    come.set()  # the server waits for this before it sends the rest
    assert len(list(stream)) == 2
    assert told(log) == [("How many?", text, "answered")]


def test_a_stream_that_ends_early_is_incomplete(chat_server, client, log):
    first = streamed("hello").partition(b"\n\n")[0] + b"\n\n"

    def timed_out(stream):
        with pytest.raises(Exception, match="timed out"):
            list(stream)

    def closed(stream):
        with stream:
            next(stream)

    for read in (list, next, closed, bool, timed_out):  # `bool` reads nothing
        rest = [threading.Event()] if read is timed_out else []
        chat_server.script = [[first, *rest]]
        read(ask(client, stream=True, timeout=0.5))
        gc.collect()
        reply = "" if read is bool else "hello"
        assert told(log) == [("How many?", reply, "incomplete")]
        log.unlink()


def test_other_doors_that_ask_a_model_warn_once_and_the_rest_pass(client, log):
    speech = {"model": "m", "voice": "alloy", "input": "q"}
    doors = {
        "audio/speech": lambda: client.audio.speech.create(**speech),
        "runs": lambda: client.beta.threads.runs.create("thread-1", assistant_id="a"),
        "no word": lambda: client.embeddings.create(model="m", input="q"),
        "nor here": lambda: client.images.generate(model="m", prompt="q"),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        for door in [*doors.values()] * 2:
            try:
                door()
            except openai.NotFoundError:
                continue  # the server knows none of them
    caught = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert len(caught) == 2 and not log.exists()
    for name, message in zip(doors, caught, strict=False):
        assert name in message and "unrecorded" in message


@pytest.mark.parametrize("action", ["always", "error"])
def test_the_recorder_never_breaks_the_call(chat_server, tmp_path, action):
    client = record.record(plain(chat_server), tmp_path)  # a folder: no log can be
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action, RuntimeWarning)
        assert [ask(client).choices[0].message.content for _ in "ab"] == ["hello"] * 2
        assert len(list(ask(client, stream=True))) == 3
    assert len(caught) == (action == "always")


def test_what_is_no_client_of_an_sdk_is_refused(client, log):
    for bad in (SimpleNamespace(), print, None):
        with pytest.raises(TypeError, match="an SDK like openai's"):
            record.record(bad, log)
    with pytest.raises(TypeError, match="session"):
        record.record(client, log, session="s")


def test_a_model_can_pose_as_an_openai_client(log):
    client = record.as_client(lambda messages: Reply(f"to {messages[-1]}", 5, 2))
    client = record.record(client, log, user_id="u")
    assert ask(client).choices[0].message.content == f"to {ASKED[-1]}"
    (trace,), _ = traces.read(log)
    assert (trace.question, trace.tokens, trace.user_id) == ("How many?", (5, 2), "u")
