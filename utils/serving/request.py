"""What a client may ask for: OpenAI's chat completions, within limits.

Only the fields that `payload` writes reach the engine. llama.cpp knows many more, with
which a client could lift the server's limits or break its parsers; they are refused by
their name, as OpenAI refuses what it does not know. Parsing is strict, so that "0.5" is
no temperature, and pydantic's parser bounds how deep JSON may nest.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_STOPS, MAX_STOP, MAX_BIASES, MAX_N = 4, 64, 300, 4
MAX_SCHEMA, MAX_DEPTH, MAX_REPEATS = 4_000, 8, 100  # characters, levels, items
SCHEMA_WORDS = {  # what becomes a small grammar; no patterns and no references
    *("type", "properties", "required", "items", "enum", "const", "anyOf"),
    *("additionalProperties", "minItems", "maxItems", "title", "description"),
}


class Plain(BaseModel):
    """Other fields of a message, such as `refusal`, say nothing to the model."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Text(Plain):
    """The one kind of content that this server reads."""

    type: Literal["text"]
    text: str


class FunctionCall(Plain):
    """Name and arguments (JSON as text) of an earlier tool call."""

    name: str
    arguments: str


class ToolCall(Plain):
    """An earlier tool call in the conversation."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(Plain):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Text] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        parts = self.content or ""
        return parts if isinstance(parts, str) else "\n".join(p.text for p in parts)

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError("a message without content")
        return self


class Schema(Plain):
    """A JSON schema that becomes a small grammar."""

    name: str = Field(max_length=64)
    json_schema: dict[str, Any] = Field(alias="schema")

    @model_validator(mode="after")
    def _is_small(self) -> "Schema":
        if len(json.dumps(self.json_schema)) > MAX_SCHEMA:
            raise ValueError(f"a schema may have {MAX_SCHEMA:,} characters")
        try:
            _check_schema(self.json_schema, MAX_DEPTH)
        except (TypeError, OverflowError):
            raise ValueError("schema: not a JSON schema") from None
        return self


class ResponseFormat(Plain):
    """Free text, any JSON, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema")
        return self


class StreamOptions(Plain):
    """Whether a stream ends with the tokens used."""

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """A request as OpenAI documents it; `null` is as good as left out."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    messages: list[Message] = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_N)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: (
        Annotated[str, Field(max_length=MAX_STOP)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP)]],
            Field(max_length=MAX_STOPS),
        ]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    logit_bias: (
        dict[
            Annotated[str, Field(pattern=r"^\d{1,7}$")],
            Annotated[float, Field(ge=-100, le=100)],
        ]
        | None
    ) = Field(None, max_length=MAX_BIASES)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    # These change no reply.
    parallel_tool_calls: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _can_be_done(self) -> "ChatRequest":
        asked = [one for one in self.messages if one.role == "user"]
        if not any(one.text.strip() for one in asked):
            raise ValueError("messages: no question; a user's message needs text")
        if self.tools and self.tool_choice != "none":
            raise ValueError("tools: this model calls no tools")
        if not self.tools and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tool_choice: this model calls no tools")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: set logprobs, too")
        if self.stream and (self.n or 1) > 1:
            raise ValueError("n: a stream has one choice")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for the tokens at the end of a stream."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def payload(self, max_tokens: int) -> dict[str, Any]:
        """Write the request for the engine, the reply no longer than `max_tokens`."""
        asked = (self.max_tokens, self.max_completion_tokens, max_tokens)
        names = {"temperature", "top_p", "presence_penalty", "frequency_penalty"}
        names |= {"logprobs", "top_logprobs", "logit_bias", "stop"}
        body = self.model_dump(include=names, exclude_none=True)
        body["messages"] = [_message(one) for one in self.messages]
        body["max_tokens"] = min(one for one in asked if one is not None)
        body["stream"] = bool(self.stream)
        body["stream_options"] = {"include_usage": True}  # for the log
        if self.seed is not None:
            body["seed"] = self.seed % 2**32  # as many as the engine has
        form = self.response_format
        if form and form.type != "text":
            body["response_format"] = form.model_dump(exclude_none=True, by_alias=True)
        return body


def _message(one: Message) -> dict[str, Any]:
    """Write a message for the engine, whose templates know no developer."""
    role = "system" if one.role == "developer" else one.role
    written: dict[str, Any] = {"role": role, "content": one.text}
    if one.tool_calls:
        written["tool_calls"] = [call.model_dump() for call in one.tool_calls]
    if one.tool_call_id:
        written["tool_call_id"] = one.tool_call_id
    return written


def _check_schema(schema: Any, levels: int) -> None:
    """Raise ValueError for a schema that is deep, or more than plain types."""
    if levels == 0:
        raise ValueError(f"a schema may nest {MAX_DEPTH} levels")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError("a schema is an object")
    if unknown := sorted(schema.keys() - SCHEMA_WORDS):
        raise ValueError(f"schema: {unknown[0]} is not supported")
    for name in ("minItems", "maxItems"):
        if not 0 <= int(schema.get(name, 0)) <= MAX_REPEATS:
            raise ValueError(f"{name} may be {MAX_REPEATS}")
    inner = [*dict(schema.get("properties", {})).values(), *schema.get("anyOf", [])]
    inner += [
        schema[name] for name in ("items", "additionalProperties") if name in schema
    ]
    for one in inner:
        _check_schema(one, levels - 1)


def parse(body: bytes) -> ChatRequest:
    """Read a request's body.

    Raises:
        ValueError: what is wrong, in a sentence; its second argument names the field.

    """
    try:
        return ChatRequest.model_validate_json(body)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise ValueError("the body nests too deep", None) from None
        # Of the forms that a field may have, the one that fits the longest.
        worst = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        place = ".".join(str(part) for part in worst["loc"]) or None
        why = worst["msg"].removeprefix("Value error, ")
        if worst["type"] == "extra_forbidden":
            why = "this server does not know this field"
        raise ValueError(f"{place}: {why}" if place else why, place) from None
