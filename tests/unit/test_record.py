"""The collect-now kit: every door of a client is recorded, or warns once."""

import asyncio
import gc
import inspect
import json
import operator
import threading
import warnings
from types import SimpleNamespace

import openai
import pydantic
import pytest
from chat_server import completion, response, streamed

from utils.evals.types import Reply
from utils.logs import record, traces

ASKED = [{"role": "user", "content": "How many?"}]
BODIES = {"chat": {"messages": ASKED}, "responses": {"input": "How many?"}}
BODIES |= {"completions": {"prompt": "How many?"}}
RAW, STREAMING = "with_raw_response", "with_streaming_response"
CREATED = ["chat.completions", "responses", "completions"]
DOORS = [f"{one}.create" for one in CREATED]
DOORS += [f"{one}.{RAW}.create" for one in CREATED]
DOORS += [f"{one}.{STREAMING}.create" for one in CREATED]
DOORS += [f"{door} stream" for door in DOORS]
DOORS += ["chat.completions.parse", "chat.completions.stream", "responses.parse"]
DOORS += ["responses.stream", f"chat.completions.{RAW}.parse"]
DOORS += ["beta.chat.completions.parse", "beta.chat.completions.stream"]
DOORS += [f"{RAW}.chat.completions.create", f"{STREAMING}.responses.create"]


def call(client, door):
    name, _, streams = door.partition(" ")
    kind = next(part for part in name.split(".") if part in BODIES)
    more = {"stream": True} if streams else {}
    return operator.attrgetter(name)(client)(model="m", **BODIES[kind], **more)


def drain(result):
    """Read a response as a product does, whatever its kind."""
    if hasattr(result, "http_response"):
        result = result.parse()
    if hasattr(result, "__enter__"):
        with result as opened:
            return opened.read() if hasattr(opened, "read") else list(opened)
    return result


async def drain_async(result):
    result = await result if inspect.isawaitable(result) else result
    if hasattr(result, "http_response"):
        result = result.parse()
    if hasattr(result, "__aenter__"):
        async with result as opened:
            if hasattr(opened, "read"):
                return await opened.read()
            return [piece async for piece in opened]
    return result


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.jsonl"


def plain(server, kind=openai.OpenAI):
    http = openai.DefaultHttpxClient
    http = openai.DefaultAsyncHttpxClient if kind is openai.AsyncOpenAI else http
    more = {"max_retries": 0, "http_client": http(verify=False)}  # certificates: 50 ms
    return kind(base_url=server.url, api_key="sk-1", **more)


@pytest.fixture
def client(chat_server, log):
    with plain(chat_server) as client:
        yield record.record(client, log)


def ask(client, **more):
    return client.chat.completions.create(model="m", messages=ASKED, **more)


def status_of(path):
    return [trace.status for trace in traces.read(path)[0]]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_leaves_one_trace(chat_server, tmp_path, door):
    chat_server.zipped = DOORS.index(door) % 2 == 1
    logs = [tmp_path / "bare", tmp_path / "sync.jsonl", tmp_path / "async.jsonl"]

    async def all_async():
        async with plain(chat_server, openai.AsyncOpenAI) as client:
            recorded = record.record(client, logs[2], user_id="u1")
            assert isinstance(recorded, openai.AsyncOpenAI)
            return await drain_async(call(recorded, door))

    with plain(chat_server) as client, warnings.catch_warnings():
        warnings.simplefilter("error")
        client.chat  # noqa: B018  what was used before is recorded, too
        bare = drain(call(client, door))
        recorded = drain(call(record.record(client, logs[1], user_id="u1"), door))
        drain(call(client, door))  # the client itself stays as it was
        recorded_async = asyncio.run(all_async())
    assert str(bare) == str(recorded) and type(bare) is type(recorded)
    assert str(recorded_async) == str(recorded) or "Raw" in str(type(recorded))
    for path in logs[1:]:
        (trace,), bad = traces.read(path)
        told = (trace.question, trace.reply, trace.tokens, trace.user_id)
        assert told == ("How many?", "hello", (11, 7), "u1") and not bad
        assert trace.seconds > 0 and "error.type" not in trace.spans[0]["attributes"]
        assert "sk-1" not in path.read_text()


def test_copies_azure_and_wrapping_twice(chat_server, log, tmp_path):
    azure = {"azure_endpoint": chat_server.url, "api_version": "1", "api_key": "k"}
    with plain(chat_server) as bare, openai.AzureOpenAI(**azure) as cloud:
        client = record.record(bare, log)
        ask(client.copy(timeout=9))
        ask(client.with_options(max_retries=1).with_options(timeout=8))
        ask(record.record(cloud, log))
        twice = record.record(client, tmp_path / "other.jsonl", session_id="s")
        assert len(list(ask(twice, stream=True))) == 3
        body = {"model": "m", "messages": ASKED}
        client.post("/chat/completions", body=body, cast_to=object)
    assert len(traces.read(log)[0]) == 5
    assert traces.read(tmp_path / "other.jsonl")[0][0].session_id == "s"


def test_settings_are_kept_and_secrets_are_not(client, log):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    ask(
        client,
        max_completion_tokens=5,
        temperature=0,
        top_p=openai.omit,
        stop=["x"],
        tools=[tool],
        extra_headers={"X-Key": "hush-1"},
        extra_body={"api_key": "hush-2", "top_k": 3},
    )
    client.responses.create(
        model="m",
        input="q",
        tools=[{"type": "mcp", "server_label": "s", "authorization": "hush-3"}],
    )
    (chat, _), _ = traces.read(log)
    kept = chat.spans[0]["attributes"]
    assert kept["gen_ai.request.temperature"] == 0 and "hush" not in log.read_text()
    assert 5 in kept.values() and ["x"] in kept.values() and 3 in kept.values()
    assert not [key for key in kept if "top_p" in key]


def test_a_chat_that_grows_is_kept_as_it_was(client, log):
    chat = list(ASKED)
    response = client.chat.completions.create(model="m", messages=chat)
    chat += [response.choices[0].message, {"role": "user", "content": "And in June?"}]
    client.chat.completions.create(model="m", messages=chat)
    (first, second), _ = traces.read(log)
    assert (first.question, second.question) == ("How many?", "And in June?")
    said = second.spans[0]["attributes"][traces.INPUT][1]
    assert (said["role"], said["content"]) == ("assistant", "hello")


def test_errors_are_recorded_and_raised_and_retries_are_one_trace(chat_server, log):
    client = record.record(plain(chat_server), log)
    for script, error in [(429, openai.RateLimitError), (1.0, openai.APITimeoutError)]:
        chat_server.script = [script]
        with pytest.raises(error):
            ask(client, timeout=0.3)
    chat_server.script = [500, "hello"]
    ask(client.with_options(max_retries=1))
    assert len(chat_server.requests) == 4
    assert status_of(log) == ["rate_limit", "timeout", "answered"]


def test_a_reply_that_cannot_be_parsed_is_kept(chat_server, client, log):
    class Number(pydantic.BaseModel):
        count: int

    chat_server.script = ["no number", completion("{", finish_reason="length")]
    for error in (pydantic.ValidationError, openai.LengthFinishReasonError):
        with pytest.raises(error):
            client.chat.completions.parse(
                model="m", messages=ASKED, response_format=Number
            )
    chat_server.script = [b"<html>", response("", "m") | {"output": []}]
    assert ask(client) == "<html>"
    client.responses.create(model="m", input="q", background=True)
    assert [t.reply for t in traces.read(log)[0]][:2] == ["no number", "{"]
    known = ["ValidationError", "LengthFinishReasonError", "not_json", "no_reply"]
    assert status_of(log) == known


def test_a_stream_comes_as_early_as_before(chat_server, client, log):
    text = "hel\u2028lo"  # breaks a line for Python, not for a stream of events
    body = streamed(completion(text)).replace(rb"\u2028", "\u2028".encode())
    first, *rest = body.partition(b"\n\n")[::2]
    come = threading.Event()
    chat_server.script = [[first + b"\n\n", come, *rest]]
    stream = ask(client, stream=True)
    assert type(stream) is openai.Stream
    assert next(stream).choices[0].delta.content == text and not log.exists()
    come.set()  # the server waits for this before it sends the rest
    assert len(list(stream)) == 2
    (trace,), _ = traces.read(log)
    assert (trace.reply, trace.status) == (text, "answered")


@pytest.mark.parametrize("how", ["closed", "dropped", "unread", "cut", "timeout"])
def test_a_stream_that_ends_early(chat_server, client, log, how):
    first = streamed(completion("hello")).partition(b"\n\n")[0] + b"\n\n"
    rest = [threading.Event()] if how == "timeout" else []
    chat_server.script = [[first, *rest]]
    stream = ask(client, stream=True, timeout=0.5)
    if how == "closed":
        with stream:
            next(stream)
    elif how == "dropped":
        next(iter(stream))
    elif how == "cut":
        list(stream)
    elif how == "timeout":
        with pytest.raises(Exception, match="timed out"):
            list(stream)
    del stream
    gc.collect()
    (trace,), _ = traces.read(log)
    assert trace.status == ("timeout" if how == "timeout" else "incomplete")
    assert trace.reply == ("" if how == "unread" else "hello")


def test_a_cancelled_call_is_recorded(chat_server, log):
    async def cancelled():
        async with plain(chat_server, openai.AsyncOpenAI) as client:
            recorded = record.record(client, log)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask(recorded), 0.2)

    chat_server.script = [1.0]
    asyncio.run(cancelled())
    assert status_of(log) == ["CancelledError"]


def test_other_doors_that_ask_a_model_warn_once_and_the_rest_pass(client, log):
    def loud():
        client.audio.speech.create(model="m", voice="alloy", input="q")

    def run():
        client.beta.threads.runs.create("thread-1", assistant_id="a")

    def socket():
        client.websocket_base_url  # noqa: B018  what every connection reads first

    def several():
        client.completions.create(model="m", prompt=["a", "b"])

    def quiet():
        client.embeddings.create(model="m", input="q")
        client.images.generate(model="m", prompt="q")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        for door in [loud, run, socket, several, quiet] * 2:
            try:
                door()
            except Exception:
                continue  # the server knows none of them
    caught = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert len(caught) == 4 and not log.exists()
    for name, message in zip(
        ["audio/speech", "runs", "WebSocket", "several"], caught, strict=True
    ):
        assert name in message and "unrecorded" in message


@pytest.mark.parametrize("action", ["always", "error"])
def test_the_recorder_never_breaks_the_call(chat_server, tmp_path, action):
    client = record.record(plain(chat_server), tmp_path)  # a folder: no log can be
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action, RuntimeWarning)
        assert [ask(client).choices[0].message.content for _ in "ab"] == ["hello"] * 2
        assert len(list(ask(client, stream=True))) == 3
    assert len(caught) == (action == "always")


def test_a_client_of_another_make(log):
    def create(**request):
        return completion("hello") if request["model"] == "m" else object()

    async def create_async(**request):
        return completion("hello")

    def client_of(create):
        calls = SimpleNamespace(create=create, stream=len, list=len)
        chat = SimpleNamespace(completions=calls)
        bare = SimpleNamespace(chat=chat, models=len, key="k")
        return record.record(bare, log, user_id="u")

    client = client_of(create)
    ask(client)
    asyncio.run(ask(client_of(create_async)))
    assert [t.question for t in traces.read(log)[0]] == ["How many?"] * 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        odd = [client.chat.completions.create(model="odd") for _ in "abc"]
        assert client.chat.completions.stream is len is client.chat.completions.list
        assert client.key == "k" and client.models is len
    assert [type(o) for o in odd] == [object] * 3 and len(caught) == 2
    for bad in (SimpleNamespace(), print, None):
        with pytest.raises(TypeError, match=r"chat\.completions\.create"):
            record.record(bad, log)
    with pytest.raises(TypeError, match="session"):
        record.record(client, log, session="s")


def test_a_model_can_pose_as_an_openai_client(log):
    client = record.as_client(lambda messages: Reply(f"to {messages[-1]}", 5, 2))
    client = record.record(client, log, user_id="u")
    asked = [{"role": "user", "content": "hi"}]
    response = client.chat.completions.create(model="m", messages=asked)
    assert response.choices[0].message.content == f"to {asked[-1]}"
    (trace,), _ = traces.read(log)
    assert (trace.question, trace.tokens, trace.user_id) == ("hi", (5, 2), "u")


def test_anthropics_client(chat_server, log):
    anthropic = pytest.importorskip("anthropic")
    url = chat_server.url.removesuffix("/v1")
    client = record.record(anthropic.Anthropic(base_url=url, api_key="k"), log)
    asked = {"model": "m", "messages": ASKED, "max_tokens": 9}
    client.messages.create(**asked)
    list(client.messages.create(**asked, stream=True))
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == "hello"
    found = [(t.question, t.reply, t.tokens, t.status) for t in traces.read(log)[0]]
    assert found == [("How many?", "hello", (11, 7), "answered")] * 3
    assert json.loads(log.read_text().splitlines()[0])["spans"][0]["seconds"] > 0
