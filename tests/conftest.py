"""What every test relies on, and what several share: a chat server, an open pool."""

import os
import threading
from pathlib import Path

import pytest
from chat_server import ChatServer

# As `make test` sets them, for who calls pytest by hand. Kernels and workers inherit
# them: the utils of this folder, one thread a process, no look-up on a hub.
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def chat_server():
    server = ChatServer()
    poll = {"poll_interval": 0.02}
    thread = threading.Thread(target=server.serve_forever, kwargs=poll, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def pool():
    from utils import tidewater

    with tidewater.open_pool() as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_key_of_the_developer(monkeypatch):
    """Tests must not ask, and bill, whatever API this machine is set up for."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MODEL"):
        monkeypatch.delenv(name, raising=False)
