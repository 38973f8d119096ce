"""What every product, model, engine and tool of the course agrees on.

A model is any function from messages to a `Reply`: the frontier API, a recording of it,
a tuned model in memory or behind a server.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from utils.logs.traces import Trace

# A case of an eval: "id", "question", and what is right, in the product's own keys.
Case = dict[str, Any]
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


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer, and why it is wrong where somebody can say so."""

    correct: bool
    error: str | None = None


class Product(Protocol):
    """What a product tells the course about itself: notebooks 01 to 04 ask only this.

    `utils.tidewater.product` is one; notebook 12 writes another in forty lines.
    """

    name: str
    prompts: Mapping[str, str]  # system prompts by name; the first is the one in use
    no_answer: str  # what a reply without an answer is called here: "no query"

    def logs(self) -> "list[Trace]":
        """Return the traces that were collected, oldest first, with feedback."""

    def cases(self, split: str = "eval") -> list[Case]:
        """Return the cases of a split."""

    def extract(self, reply: str) -> Any | None:
        """Read the answer out of a reply; None if there is none."""

    def grade(self, cases: Sequence[Case], answers: Sequence[Any]) -> Sequence[Grade]:
        """Grade one answer a case; None is a wrong answer."""

    def show(self, case: Case, answer: Any) -> str:
        """Write an answer as text for a person who reads it beside the case."""


def correction(trace: "Trace", product: Product | None) -> Any | None:
    """Return the right answer that a reviewer gave, as the product reads it, or None.

    It stands in the feedback under `answer` or `sql`, as a reply or as the bare answer.
    """
    note = trace.feedback or {}
    right = note.get("answer", note.get("sql"))
    found = product.extract(right) if product and isinstance(right, str) else None
    return right if found is None else found


def check_product(product: Product, logs: "Sequence[Trace]") -> None:
    """Try a product of one's own on its logs; ValueError says what to mend first.

    `feedback["answer"]` of a trace should be the right reply as text.
    """
    parts = "name no_answer prompts logs cases extract grade show"
    missing = [part for part in parts.split() if not hasattr(product, part)]
    if missing:
        raise ValueError(f"the product has no {', '.join(missing)}: see `Product`")
    if not re.fullmatch(r"[\w-]+", product.name):
        raise ValueError(f"name: letters, digits, - and _ only, not {product.name!r}")
    if not logs:
        raise ValueError("logs() gave no traces: look at what traces.load tells")
    for trace in logs:
        right = (trace.feedback or {}).get("answer")
        if right is None:
            continue
        where = f"feedback['answer'] of trace {trace.trace_id}"
        if not isinstance(right, str):
            raise ValueError(f"{where} is {right!r}: write the right reply as text")
        answer = product.extract(right)
        if answer is None:
            raise ValueError(
                f"extract() reads no answer in {where}, {right!r}: write the whole "
                "reply that the model should have given, or leave that label out"
            )
        if json.loads(json.dumps(answer, default=repr)) != answer:
            raise ValueError(f"extract() gives {answer!r}: give text, lists or dicts")
        case = {"id": trace.trace_id, "question": trace.question, "answer": answer}
        grades = list(product.grade([case], [answer]))
        if len(grades) != 1 or not getattr(grades[0], "correct", False):
            raise ValueError(
                f"grade() of {where} against itself gives {grades!r}: it should give "
                "one Grade a case, and this one correct"
            )
