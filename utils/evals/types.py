"""What every model, engine and tool of the course agrees on. Imports nothing of utils.

A model is any function from messages to a `Reply`: the frontier API, a recording of it,
a tuned model in memory or behind a server.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

# A chat: {"role": "system", "user" or "assistant", "content": text}, in order.
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """One model reply: its text, tokens as billed (None: not told), and seconds."""

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float | None = None
    model: str = ""
    cached_tokens: int | None = None
    finish_reason: str = "stop"


Model = Callable[[Messages], Reply]


class ModelError(Exception):
    """A model could not reply. `status` is a name from `harness.STATUSES`."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Tool(Protocol):
    """What a product gives its assistant to act with; Tidewater's runs SQL."""

    name: str

    def extract(self, reply: str) -> dict[str, Any] | None:
        """Read the call's arguments out of a reply; None if there is no call."""

    def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the call; the result has "error": None, or what to tell the model."""

    def repair(self, error: str) -> str:
        """Word the message that asks the model to mend its call."""
