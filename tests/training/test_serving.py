"""A served model: the protocol, bad requests, overload, hanging up, and parity."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import gguf
import modal
import numpy as np
import openai
import pytest
from aiohttp import web
from modal_proto import api_pb2
from standin import Standin

from utils import course, remote, tidewater
from utils.evals.harness import ApiModel, Assistant
from utils.serving import export
from utils.serving import load as loadtest
from utils.serving import server as serving
from utils.serving.load import Timed, summary
from utils.training import weights as models

ADAPTER = course.SHIPPED / "06_rl_seed_0" / "adapter"
QUESTIONS = [case["question"] for case in tidewater.load_cases("eval", 4)]
GREEDY = {"temperature": 0.0, "max_tokens": 192}


@pytest.fixture(scope="module")
def weights():
    return export.to_gguf(adapter=ADAPTER, kind="F32")


@pytest.fixture(scope="module")
def url(weights):
    with serving.serve(weights, slots=2, waiting=4, api_key="secret") as address:
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as one:
        yield one


def chat(client, question=QUESTIONS[0], **more):
    said = [{"role": "user", "content": question}]
    options = {"model": "tidewater", "messages": said} | GREEDY | more
    return client.chat.completions.create(**options)


# --- the file ------------------------------------------------------------------------


def test_the_file_holds_the_merged_weights(weights):
    model, _ = models.load(adapter=ADAPTER, dtype="float32")
    found = {t.name: t for t in gguf.GGUFReader(weights).tensors}
    ours = model.state_dict()
    assert len(found) == len(ours) - 1  # the head is that of the embeddings
    table = ours["model.embed_tokens.weight"].numpy()
    assert np.array_equal(found["token_embd.weight"].data, table)
    # A head's rows lie in pairs there: 0, 32, 1, 33 and so on.
    rows = np.arange(64).reshape(2, 32).T.ravel()
    wanted = ours["model.layers.3.self_attn.k_proj.weight"].numpy()[rows]
    assert np.array_equal(found["blk.3.attn_k.weight"].data[:64], wanted)


def test_a_file_is_made_once_and_another_adapter_makes_another(weights):
    before = weights.stat().st_mtime_ns
    assert export.to_gguf(adapter=ADAPTER, kind="F32") == weights
    assert weights.stat().st_mtime_ns == before
    assert not list(models.cache().glob("*.draft"))
    other = course.SHIPPED / "06_rl_seed_1" / "adapter"
    assert export.to_gguf(adapter=other, kind="Q8_0") != export.to_gguf(
        adapter=ADAPTER, kind="Q8_0"
    )


def test_what_cannot_be_exported_is_told(tmp_path):
    with pytest.raises(ValueError, match="no kind 'Q9'"):
        export.to_gguf(kind="Q9")
    with pytest.raises(FileNotFoundError, match="no model"):
        export.to_gguf("nowhere")
    from tiny import tiny_model

    with pytest.raises(ValueError, match="convert_hf_to_gguf"):
        export.to_gguf(tiny_model(tmp_path / "tiny"))
    assert not list(models.cache().glob("*.draft"))


# --- the protocol --------------------------------------------------------------------


def test_replies_are_those_of_the_model(client):
    model, tokenizer = models.load(adapter=ADAPTER, dtype="float32")
    for question in QUESTIONS[:2]:
        prompt = models.prompt_ids(tokenizer, [{"role": "user", "content": question}])
        import torch

        with torch.inference_mode():
            out = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=192,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )[0, len(prompt) :]
        reply = chat(client, question)
        assert reply.choices[0].message.content == tokenizer.decode(
            out, skip_special_tokens=True
        )
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.prompt_tokens == len(prompt)
        assert reply.usage.completion_tokens == len(out)


def test_an_empty_system_prompt_is_no_system_prompt(client):
    said = [{"role": "user", "content": QUESTIONS[0]}]
    plain = chat(client)
    for empty in ("", "  \n"):
        system = [{"role": "system", "content": empty}, *said]
        reply = chat(client, messages=system)
        assert reply.usage.prompt_tokens == plain.usage.prompt_tokens
    real = chat(client, messages=[{"role": "system", "content": "Say hi."}, *said])
    assert real.usage.prompt_tokens > plain.usage.prompt_tokens


def test_a_reply_comes_in_pieces_or_at_once(client):
    whole = chat(client)
    events = list(chat(client, stream=True, stream_options={"include_usage": True}))
    pieces = [e.choices[0].delta.content for e in events if e.choices]
    assert "".join(filter(None, pieces)) == whole.choices[0].message.content
    assert len(pieces) > 20
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_limits_hold(client):
    short = chat(client, max_tokens=5)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 5
    # Whatever is asked for, the server's own limit stays.
    wild = chat(client, "Say it again and again.", temperature=1.5, max_tokens=10**6)
    assert wild.usage.completion_tokens <= 256


def test_the_harness_needs_a_url_and_nothing_else(url, pool):
    tool = tidewater.SqlTool(pool)
    model = ApiModel("tidewater", url, "secret", **GREEDY)
    traces = Assistant(model, "", tool, "bare").ask_all(QUESTIONS, workers=4)
    assert [t.status for t in traces] == ["answered"] * 4
    assert all(t.tokens[0] and t.tokens[1] for t in traces)


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["tidewater"]


# --- what goes wrong -----------------------------------------------------------------


def post(url, body, key="secret", path="/chat/completions"):
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_bad_requests_are_told_and_leave_the_server_well(url, client):
    said = {"model": "tidewater", "messages": [{"role": "user", "content": "hi"}]}
    long = said | {"messages": [{"role": "user", "content": "word " * 3000}]}
    cases = {
        b"{": (400,),
        b"{}": (400,),
        json.dumps(said | {"messages": "hi"}).encode(): (400,),
        json.dumps(said | {"max_tokens": -5}).encode(): (400,),
        json.dumps(long).encode(): (400,),
        b" " * (2 << 20): (413,),
    }
    for body, wanted in cases.items():
        status, told = post(url, body)
        assert status in wanted, (body[:60], status)
        assert told["error"]["message"]
    assert post(url, json.dumps(said).encode(), key="guessed")[0] == 401
    assert post(url, b"{}", path="/nothing")[0] in (404, 501)
    assert post(url.removesuffix("/v1"), b"{}", path="/slots")[0] == 404
    assert chat(client).choices[0].message.content


def test_over_the_edge_some_are_refused_at_once_and_none_is_lost(url):
    crowd = [f"How many orders in {month} 2026?" for month in ("May", "June")] * 8
    options = {"api_key": "secret", **GREEDY}
    rows = loadtest.load(url, crowd, len(crowd), **options)
    assert {row.status for row in rows} == {200, 429}
    assert sum(row.status == 200 for row in rows) >= 6  # two slots, four may wait
    assert all(row.text for row in rows if row.status == 200)
    patient = loadtest.load(url, crowd, len(crowd), retries=60, **options)
    assert all(row.status == 200 and row.text for row in patient)
    told = summary(rows)
    assert told["lost"] == 0 and told["answered"] + told["refused"] == len(crowd)


def busy(url):
    request = urllib.request.Request(
        url.replace("/v1", "/metrics"), headers={"Authorization": "Bearer secret"}
    )
    lines = urllib.request.urlopen(request, timeout=10).read().decode().splitlines()
    (line,) = (x for x in lines if x.startswith("llamacpp:requests_processing"))
    return int(float(line.split()[-1]))


def test_who_hangs_up_frees_the_server(url, client):
    stream = chat(client, stream=True)
    next(iter(stream))
    assert busy(url) == 1
    stream.close()
    late = time.monotonic() + 5
    while busy(url) and time.monotonic() < late:
        time.sleep(0.01)
    assert busy(url) == 0


def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="to_gguf"), serving.serve("no.gguf"):
        pass
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    with pytest.raises(RuntimeError, match="did not start"), serving.serve(broken):
        pass
    for wrong in ({"slots": 0}, {"waiting": -1}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="slots"), serving.serve(broken, **wrong):
            pass


@pytest.mark.timeout(120)
def test_the_server_dies_with_whoever_started_it(weights):
    code = (
        "from utils.serving import serve\n"
        f"with serve({str(weights)!r}) as url:\n"
        "    print(url, flush=True)\n"
        "    import time; time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=course.ROOT
    )
    address = parent.stdout.readline().decode().strip()
    urllib.request.urlopen(address + "/models", timeout=10)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    late = time.monotonic() + 10
    while time.monotonic() < late:
        try:
            urllib.request.urlopen(address + "/models", timeout=1)
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the server outlived its parent")


# --- the gate alone ------------------------------------------------------------------


@contextlib.contextmanager
def running(*apps):
    """Run aiohttp apps in a thread; yields their addresses."""
    ready, urls, loop = threading.Event(), [], asyncio.new_event_loop()

    async def start():
        for app in apps:
            app = app if isinstance(app, web.Application) else app(urls)
            runner = web.AppRunner(app, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        ready.set()

    loop.create_task(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield urls
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def gate_app(capacity, gates):
    def make(urls):
        gate = serving.Gate(urls[0], capacity)
        gates.append(gate)
        app = web.Application()
        app.on_startup.append(gate.open)
        app.on_cleanup.append(gate.close)
        app.router.add_route("*", "/{path:.*}", gate.answer)
        return app

    return make


def test_the_gate_keeps_count():
    async def slow(request):
        await asyncio.sleep(0.5)
        return web.json_response({"said": (await request.json())["n"]})

    async def listed(request):
        return web.json_response({"path": request.path})

    upstream, gates = web.Application(), []
    upstream.router.add_post("/v1/chat/completions", slow)
    upstream.router.add_get("/v1/models", listed)
    with running(upstream, gate_app(3, gates)) as (_, address):
        found = []
        url = address + "/v1"

        def ask(n):
            found.append(post(url, json.dumps({"n": n}).encode()))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.25)
        # What costs nothing passes while all places are taken.
        assert urllib.request.urlopen(url + "/models", timeout=5).status == 200
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in found) == [200] * 3 + [429] * 5
        refused = next(told for status, told in found if status == 429)
        assert refused["error"]["type"] == "rate_limit_error"
        time.sleep(0.1)  # the last answer is out before its handler ends
        assert gates[0].inside == 0
        assert post(url, b'{"n": 1}') == (200, {"said": 1})


def test_who_dawdles_keeps_nobody_waiting(monkeypatch):
    monkeypatch.setattr(serving, "SEND", 0.5)

    async def quick(request):
        return web.json_response(await request.json())

    upstream, gates = web.Application(), []
    upstream.router.add_post("/v1/chat/completions", quick)
    with running(upstream, gate_app(2, gates)) as (_, address):
        host, port = address.removeprefix("http://").split(":")
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        head += "Content-Length: 9\r\n\r\n{"
        slow = [socket.create_connection((host, int(port))) for _ in range(4)]
        for one in slow:
            one.sendall(head.encode())
        time.sleep(0.1)
        assert gates[0].inside == 0
        assert post(address + "/v1", b'{"n": 1}') == (200, {"n": 1})
        answers = [one.recv(4096).split(b"\r\n")[0] for one in slow]
        assert all(b" 408 " in answer for answer in answers)
        for one in slow:
            one.close()


def test_an_engine_that_is_mute_frees_its_place(monkeypatch):
    monkeypatch.setattr(serving, "SILENT", 0.3)

    async def mute(request):
        await asyncio.sleep(5)

    upstream, gates = web.Application(), []
    upstream.router.add_post("/v1/chat/completions", mute)
    with running(upstream, gate_app(1, gates)) as (_, address):
        assert post(address + "/v1", b"{}")[0] == 503
        time.sleep(0.1)
        assert gates[0].inside == 0


def test_an_engine_that_is_gone_is_a_503():
    def nowhere(urls):
        return web.Application()

    gates = []
    with running(nowhere, gate_app(2, gates)) as (_, address):
        gates[0]._session._base_url = type(gates[0]._session._base_url)(
            "http://127.0.0.1:9"
        )
        status, told = post(address + "/v1", b"{}")
        assert status == 503 and "try again" in told["error"]["message"]
        time.sleep(0.1)
        assert gates[0].inside == 0


# --- sums ----------------------------------------------------------------------------


def test_the_summary_by_hand():
    rows = [
        Timed("a", 200, 0.0, 0.1, 1.0, 10, "x"),
        Timed("b", 200, 1.0, 0.3, 3.0, 30, "x"),
        Timed("c", 429, 0.0, None, 0.0, 0, ""),
        Timed("d", 0, 0.0, None, 2.0, 0, ""),
    ]
    told = summary(rows)
    assert (told["answered"], told["refused"], told["lost"]) == (2, 1, 1)
    assert told["requests_per_second"] == pytest.approx(2 / 4)
    assert told["tokens_per_second"] == pytest.approx(40 / 4)
    assert told["p50"] == pytest.approx(2.0)
    assert told["first_token_p50"] == pytest.approx(0.2)
    assert np.isnan(summary([rows[2]])["p50"])
    with pytest.raises(ValueError, match="a client"):
        loadtest.load("http://127.0.0.1:9/v1", ["q"], 0)


def test_a_server_that_is_not_there_is_lost_not_raised():
    rows = loadtest.load("http://127.0.0.1:9/v1", ["q", "r"], 2)
    assert [row.status for row in rows] == [0, 0]


# --- on Modal ------------------------------------------------------------------------


def test_modal_gets_a_web_server_that_sleeps(monkeypatch, tmp_path):
    notebook = course.NOTEBOOKS / "09_serve_your_model.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    first = next(i for i, source in enumerate(code) if source.startswith("MINUTES"))
    last = next(i for i, source in enumerate(code) if "vllm = app.function(" in source)
    scope = {"modal": modal, "remote": remote, "course": course, "GPU": "L4"}
    scope |= {"subprocess": subprocess, "BIG": "owner/name@abc", "export": export}
    scope["app"] = modal.App("test-serving")
    with Standin() as here:
        for cell in code[first : last + 1]:
            exec(cell, scope)
        with scope["app"].run():
            pass
        (found,) = [f for f, *_ in here.functions.values() if f]
    assert found.webhook_config.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER
    assert found.webhook_config.web_server_port == 8000
    assert found.webhook_config.requires_proxy_auth
    assert found.autoscaler_settings.min_containers == 0
    assert found.autoscaler_settings.max_containers == 2
    assert found.autoscaler_settings.scaledown_window == 300
    assert found.max_concurrent_inputs == 32
    assert found.resources.gpu_config.gpu_type == "L4"
    # What the container would start, told by a program of that name.
    told = tmp_path / "told"
    fake = tmp_path / "vllm"
    fake.write_text(f'#!/bin/sh\necho "$@" > {told}.draft; mv {told}.draft {told}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    scope["serve_vllm"]()
    late = time.monotonic() + 10
    while not told.exists() and time.monotonic() < late:
        time.sleep(0.01)
    assert "{% for message in messages if" in told.read_text()
    words = told.read_text().split()
    assert words[:2] == ["serve", "owner/name"]
    assert words[words.index("--revision") + 1] == "abc"
    assert words[words.index("--lora-modules") + 1].startswith("tidewater=/runs/06_rl")
