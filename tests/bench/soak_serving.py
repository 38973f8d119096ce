"""Soak the server: twice what it can do, with hostile requests among them.

    python tests/bench/soak_serving.py model.gguf --minutes 60 --kill 300

Good questions arrive at random, at twice the rate that was measured just before, half
of them streamed. Each is answered whole, or refused with 429 and Retry-After; anything
else counts as lost. Beside them hostile requests come at `--hostile` a second. `--kill`
ends an engine now and then; a stream that was in the middle breaks then, and says so.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import socket
import time
from pathlib import Path

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from report import ROOT, markdown, save

from utils import tidewater
from utils.course.run import run_card
from utils.serving.server import serve

KEY = "secret"
QUESTIONS = [case["question"] for case in tidewater.load_cases()]


def chat(question, **more):
    messages = [{"role": "user", "content": question}]
    body = {"model": "tidewater", "messages": messages, "temperature": 0}
    return body | {"max_tokens": 192} | more


def schema(inner):
    named = {"name": "a", "schema": inner}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def nested(levels):
    found = {"type": "string"}
    for _ in range(levels):
        found = {"anyOf": [{"type": "array", "items": found}, found]}
    return found


HOSTILE = {
    "a grammar of 60,000 brackets": chat("q", grammar="root ::= " + "(" * 60_000),
    "deep JSON": b'{"a":' * 40_000,
    "a schema of itself": chat("q", **schema({"$ref": "#"})),
    "a bomb of a schema": chat("q", **schema({"type": "array", "minItems": 10**6})),
    "a schema that branches": chat("q", **schema(nested(5))),
    "a pattern": chat("q", **schema({"type": "string", "pattern": "^(a|a)*$"})),
    "one long word": chat("a" * 16_000),
    "a megabyte": chat("a " * 500_000),
    "no limit": chat("q", max_tokens=10**9, n_predict=10**9),
    "an image": chat([{"type": "image_url", "image_url": {"url": "x"}}]),
    "no messages": chat("q") | {"messages": []},
    "many choices": chat("q", n=100),
    "all probabilities": chat("q", logprobs=True, top_logprobs=20, stream=True),
}


class Soak:
    def __init__(self, url, session):
        self.url, self.session, self.seen = url, session, collections.Counter()
        self.seconds, self.lost = [], []

    async def good(self, question, stream):
        """Ask, and count what became of it."""
        started = time.monotonic()
        try:
            outcome = await self._outcome(chat(question, stream=stream))
        except (ClientError, TimeoutError, ValueError) as error:
            outcome = f"lost: {type(error).__name__}: {error}"
        if outcome == "answered":
            self.seconds.append(time.monotonic() - started)
        if outcome.startswith("lost"):
            self.lost.append(outcome)
        else:
            self.seen[outcome] += 1

    async def _outcome(self, body):
        async with self.session.post(
            self.url + "/chat/completions", json=body
        ) as answer:
            text = await answer.text()
        if answer.status == 429 and int(answer.headers["Retry-After"]) > 0:
            return "refused"
        if answer.status != 200:
            return f"lost: {answer.status} {text[:80]}"
        if not body["stream"]:
            return "answered" if json.loads(text)["usage"] else "lost: no usage"
        if text.endswith("data: [DONE]\n\n"):
            return "answered"
        return "broken by a kill" if "in mid-answer" in text else f"lost: {text[-80:]}"

    async def hostile(self):
        """Send one of the hostile requests, or misbehave on the line."""
        name = random.choice([*HOSTILE, "slow sender", "slow reader", "hung up"])
        with contextlib.suppress(ClientError, TimeoutError, OSError):
            if name in HOSTILE:
                how = HOSTILE[name]
                how = {"data": how} if isinstance(how, bytes) else {"json": how}
                path = self.url + "/chat/completions"
                async with self.session.post(path, **how) as answer:
                    await answer.read()
                    self.seen[f"hostile, {answer.status}"] += 1
            else:
                await self._misbehave(name)
                self.seen[f"hostile, {name}"] += 1

    async def _misbehave(self, name):
        host, port = self.url.split("/")[2].split(":")
        line = socket.create_connection((host, int(port)))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        _, writer = await asyncio.open_connection(sock=line, limit=1)
        more = {"stream": True, "logprobs": True, "top_logprobs": 20}
        body = json.dumps(chat(random.choice(QUESTIONS), **more)).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: {KEY}\r\n"
        )
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        if name == "slow sender":
            for byte in body[:15]:
                writer.write(bytes([byte]))
                await asyncio.sleep(1)
        else:
            writer.write(body)
            await asyncio.sleep(0.5 if name == "hung up" else 20)
        writer.close()


def memory(gate):
    """Return MiB of the gate, and of all its engines."""
    with contextlib.suppress(psutil.Error):
        engines = [one.memory_info().rss for one in gate.children(recursive=True)]
        return [gate.memory_info().rss / 2**20, sum(engines) / 2**20]


async def soak(url, args, gate):
    limit = ClientTimeout(total=300)
    headers = {"Authorization": f"Bearer {KEY}"}
    connector = TCPConnector(limit=0, force_close=True)
    async with ClientSession(
        timeout=limit, headers=headers, connector=connector
    ) as one:
        first = Soak(url, one)
        started = time.monotonic()
        while (spent := time.monotonic() - started) < args.warm:
            crowd = random.sample(QUESTIONS, 8)
            await asyncio.gather(*(first.good(q, False) for q in crowd))
        rate = first.seen["answered"] / spent
        print(f"{rate:.2f} answers a second; now twice as many are asked.", flush=True)
        soaked, tasks, rows = Soak(url, one), set(), []
        started, next_kill = time.monotonic(), args.kill or float("inf")
        looked = -60.0
        while (now := time.monotonic() - started) < 60 * args.minutes:
            asked = soaked.good(random.choice(QUESTIONS), random.random() < 0.5)
            wanted = [asked]
            if random.random() < args.hostile / (2 * rate):
                wanted.append(soaked.hostile())
            tasks |= {asyncio.create_task(each) for each in wanted}
            tasks = {task for task in tasks if not task.done()}
            if now > next_kill:
                next_kill += args.kill
                random.choice(gate.children()).kill()
                soaked.seen["kills"] += 1
            if now - looked >= args.look:
                looked = now
                rows.append([now / 60, *(memory(gate) or [0, 0])])
                seen = dict(soaked.seen)
                print(f"{now / 60:.1f} min, MiB {rows[-1][1:]}, {seen}", flush=True)
            await asyncio.sleep(random.expovariate(2 * rate))
        await asyncio.gather(*tasks)
        rows.append([args.minutes, *memory(gate)])
        async with one.get(url.replace("/v1", "/metrics")) as answer:
            metrics = await answer.text()
        last = Soak(url, one)
        await last.good(QUESTIONS[0], False)
    return {
        "answers_a_second": rate,
        "seen": dict(soaked.seen),
        "lost": soaked.lost,
        "alive": last.seen["answered"] == 1,
        "memory": rows,
        "metrics": metrics,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--warm", type=float, default=15.0, help="seconds")
    parser.add_argument("--look", type=float, default=10.0, help="seconds")
    parser.add_argument("--hostile", type=float, default=1.0, help="a second")
    parser.add_argument("--kill", type=float, default=0.0, help="every so many seconds")
    args = parser.parse_args()
    log = ROOT / "runs" / "soak_serving.log"
    log.parent.mkdir(exist_ok=True)
    with serve(args.gguf, api_key=KEY, log=log) as url:
        gate = max(psutil.Process().children(), key=lambda one: one.create_time())
        found = asyncio.run(soak(url, args, gate))
    counts = [[name, f"{n}"] for name, n in sorted(found["seen"].items())]
    counts += [["lost", f"{len(found['lost'])}"], ["alive", f"{found['alive']}"]]
    for share in (0.1, 0.5, 1.0):
        minutes, *mib = found["memory"][round(share * (len(found["memory"]) - 1))]
        sizes = " and ".join(f"{one:.0f}" for one in mib)
        counts.append([f"MiB of gate and engines at {minutes:.1f} min", sizes])
    found["table"] = markdown(["requests", "n"], counts)
    save(
        "bench_soak",
        {"card": run_card("bench_soak", 60 * args.minutes), "results": found},
    )
    assert found["alive"] and not found["lost"], found["lost"][:3]


if __name__ == "__main__":
    main()
