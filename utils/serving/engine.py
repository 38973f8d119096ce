"""One llama.cpp engine in a process of its own, with one thread.

Two threads of one engine spin while they wait for each other, and are many times slower
as soon as anything else runs on their cores; two engines with one thread each are not.
`python -m utils.serving.engine` is the process: it reads its settings from the first
line of its input, writes its address, and ends when its input ends.
"""

import asyncio
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

START = 120.0  # seconds that a start may take
LOOK = 2.0  # seconds between two looks at an engine
HUNG = 20.0  # seconds without a sign of life; then it is killed


class Engine:
    """A running engine. `in_flight` counts the conversations that it answers."""

    def __init__(
        self, process: asyncio.subprocess.Process, address: str, key: str
    ) -> None:
        self.process, self.address, self.in_flight = process, address, 0
        self.headers = {"Authorization": f"Bearer {key}"}

    @classmethod
    async def start(cls, job: dict[str, Any]) -> "Engine":
        """Start a process: RuntimeError where it ends, or says nothing for too long.

        `job` has gguf (the file), slots, context (tokens of a slot) and max_tokens.
        """
        key = secrets.token_hex(16)  # so that nobody goes past the gate
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "utils.serving.engine"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # Ctrl-C is for the gate, which ends its engines
        )
        try:
            process.stdin.write(json.dumps(job | {"key": key}).encode() + b"\n")
            async with asyncio.timeout(START):
                line = await process.stdout.readline()
            return cls(process, json.loads(line), key)
        except BaseException as error:
            await end(process)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise RuntimeError("an engine did not start; see what it wrote") from error

    async def watch(self, session: ClientSession) -> str:
        """Return when the engine is of no more use, and say why."""
        gone = asyncio.create_task(self.process.wait())
        try:
            while not gone.done():
                await asyncio.wait([gone], timeout=LOOK)
                if not gone.done() and not await self._lives(session):
                    return "hung"
            return "died"
        finally:
            gone.cancel()
            await end(self.process)

    async def _lives(self, session: ClientSession) -> bool:
        """Ask what only the thread that generates can answer."""
        url, limit = self.address + "/metrics", ClientTimeout(total=HUNG)
        try:
            async with session.get(url, headers=self.headers, timeout=limit) as answer:
                await answer.read()
        except (ClientError, TimeoutError):
            return False
        return True


async def end(process: asyncio.subprocess.Process) -> None:
    """End a process for good, also one that is stopped."""
    if process.returncode is None:
        process.kill()
    await process.wait()


def main() -> None:
    """Be the engine's process."""
    job = json.loads(sys.stdin.readline())
    address = os.dup(1)
    os.dup2(2, 1)  # what llama.cpp prints goes to the log
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = job["gguf"], {"model"}
    settings.n_parallel = job["slots"]
    settings.n_ctx = job["context"] * job["slots"]
    settings.n_batch = 128  # tokens of a prompt between two signs of life
    settings.n_predict = job["max_tokens"]
    settings.n_threads_http = job["slots"] + 4
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.endpoint_metrics, settings.endpoint_slots, settings.ui = True, False, False
    settings.cache_ram_mib = 0  # prompts are short; no memory to keep them in
    settings.verbosity = 1  # errors; never a user's question
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    settings.api_keys = [job["key"]]
    engine = xllamacpp.Server(settings)
    os.write(address, json.dumps(engine.listening_address).encode() + b"\n")
    # The gate holds the other end; when it dies, so does this.
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
