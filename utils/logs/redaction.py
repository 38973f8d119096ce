"""Find and remove personal data: e-mail addresses, phones, extensions, people's names.

Rules, because no library that installs offline did better on the 74 marked spans of
`data/pii.jsonl` (all 1,386 questions, 2 cores, November 2026; MB as installed):

| way | recall | precision | MB | seconds |
| --- | --- | --- | --- | --- |
| Presidio 2.2.366 with spaCy en_core_web_sm 3.8 | 22/74 | 21/102 | 384 | 11 |
| scrubadub 2.0.1 | 14/74 | 15/16 | 390 | 2 |
| names-dataset 3.3.1, capitalised words, names alone | 26/29 | 52/1,251 | 151 | 17 |

Presidio takes `AOV` and `FY26 Q3` for people, leaves 7-digit phones and extensions
alone, and refuses the reserved domain `.example` (with `.com`: 37/74 and 36/117).
These rules read the form of a message and hold no list of names: a name is personal
when it signs off, introduces itself, stands beside a phone, or is to be contacted.
`How many units has Ana Bauer bought?` names a customer and is left alone.
The tests hold them to recall 0.95 and precision 0.97 on the same questions, with the
words in `utils.tidewater.words`.
"""

import functools
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import phonenumbers

Kind = Literal["email", "phone", "extension", "name"]
KINDS: tuple[Kind, ...] = ("email", "phone", "extension", "name")

_EMAIL = re.compile(r"[\w+-]+(?:[.'][\w+-]+)*@(?:[\w-]+\.)+[^\W\d_]{2,}")
_EXTENSION = re.compile(r"(?i:\b(?:ext(?:ension|n)?\b\.?(?: is)?[ :#]*|x))(\d{2,6})\b")
_PHONE = re.compile(r"(?:\(?[2-9]\d\d\)?[-. ]+)?[2-9]\d\d[-.]\d{4}")
_PLACEHOLDER = re.compile(rf"\[({'|'.join(KINDS)})\]")
_FENCE = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)

# Words that stand where a name could, and are not one; a product has more of its own.
NOT_NAMES = frozenset(
    """a again all also an and any are as asap ask at back best but by call cc cell
    cheers contact copy date day days desk direct do email ext extension finance
    for from have hello help here hi how i i'll i'm i've if in is it it's just kind
    last line lot lots mail many me message mine mobile month monthly much my name
    need no not now number of office ok on only or our per phone ping
    please pls reach regards reply ring send signed so ta team
    tel text thank thanks that the them these this time to today tomorrow
    up urgent us very we week what when which who with year yes you your
    monday tuesday wednesday thursday friday saturday sunday january february march
    april may june july august september october november december jan feb mar apr
    jun jul aug sep sept oct nov dec""".split()  # noqa: SIM905
)
# Private-use characters stand for what is already removed, one per character.
_DETAIL, _PERSON = "\ue000", "\ue001"
_GONE = f"[{_DETAIL}{_PERSON}]"
_LOW = r"[^\W\d_A-Z]"
_WORD = (
    rf"(?:[^\W\d_a-z](?:['’][A-Z])?{_LOW}+(?:[-'’][A-Z]?{_LOW}+|[A-Z]{_LOW}+)*"
    r"|[A-Z]\b\.?)"  # an initial
)
_NAME = rf"(?P<name>{_WORD}(?: (?:(?:van|von|der|de|da|di|la|bin|al) )*{_WORD}){{0,3}})"
_ANY = rf"{_NAME[:-1]}|{_LOW}{{2,}}(?: {_LOW}{{2,}})?)"  # `sam oduya` as well
_BREAK = r"(?:^|[,.;:!?(\n]\s*|\s[-–—]+\s*)"
_STOP = rf"(?=\s*(?:\Z|[,.;:!?)\n]|{_GONE}|[-–—]+\s))"
_GO_ON = r"(?= (?:about|and|asking|at|for|from|here|if|in|on|or|please|to|when|with)\b)"
_LABEL = r"(?:is|on|at|ext(?:ension|n)?|x|cell|mobile|phone|tel|line|desk|direct)"
_BESIDE = rf"(?: (?:in|from) \w+)?[\s,;:(–—-]*(?i:{_LABEL}\b[.:]?\s*)*{_DETAIL}"
_SIGN_OFF = r"(?:thanks|thank you|thx|cheers|regards|best wishes|signed[,:])[\s,.!–—-]+"
_SELF = r"(?:i'm|i am|this is|it's|my name is|(?:it's|this is) for) "
_ASK = (
    r"(?:ring|call|text|ping|e-?mail|ask(?: for)?|cc|contact|tell|reach"
    r"|(?:send|forward|pass|reply)(?: (?:it|this|them|on|back))* to):? "
)
_NAMES = [
    re.compile(rule)
    for rule in (
        rf"\b(?i:{_SIGN_OFF}){_ANY}{_STOP}",
        rf"\b(?i:{_SELF}|{_ASK}){_NAME}(?:{_STOP}|{_GO_ON})",
        rf"(?:{_BREAK}|\b(?i:{_ASK})){_ANY}{_BESIDE}",
        rf"\b(?:and|for|from|is|or|to|with) {_NAME}{_BESIDE}",
        rf"{_DETAIL}[\s).]*{_BREAK}{_ANY}{_STOP}",
        # The last words of a message that gave a phone, an e-mail or an extension.
        rf"(?s:{_DETAIL}.*){_BREAK}{_ANY}[.!)]*\s*\Z",
    )
]


@dataclass(frozen=True)
class Found:
    """One piece of personal data: `text` is what stands at `start:end` (characters)."""

    start: int
    end: int
    kind: Kind
    text: str


def _contact_details(text: str) -> Iterator[tuple[int, int, Kind]]:
    for match in _EMAIL.finditer(text):
        yield *match.span(), "email"
    for match in _EXTENSION.finditer(text):
        yield *match.span(1), "extension"
    possible = phonenumbers.Leniency.POSSIBLE
    for match in phonenumbers.PhoneNumberMatcher(text, "US", leniency=possible):
        # `100 2025` is a possible number: ask for a valid one or a phone's punctuation.
        valid = phonenumbers.is_valid_number(match.number)
        if valid or _PHONE.fullmatch(match.raw_string):
            yield match.start, match.end, "phone"


def _names(text: str, not_names: Set[str]) -> Iterator[tuple[int, int, Kind]]:
    for rule in _NAMES:
        for match in rule.finditer(text):
            words = re.finditer(r"\S+", match["name"])
            # `Thanks Dev May` starts at Dev; May may well be the family.
            real = [word for word in words if word[0].casefold() not in not_names]
            if real:
                yield match.start("name") + real[0].start(), match.end("name"), "name"


def _mask(kind: Kind, length: int) -> str:
    return (_PERSON if kind == "name" else _DETAIL) * length


def find(text: str, not_names: Set[str] = NOT_NAMES) -> list[Found]:
    """Return the personal data in `text`, sorted by place and without overlap.

    `not_names` are words in lower case that stand where a name could, and are not one;
    give `NOT_NAMES | {...}` to add those of your product.
    """
    # Placeholders of an earlier pass count as removed, so redacting twice is harmless.
    masked = _PLACEHOLDER.sub(lambda match: _mask(match[1], len(match[0])), text)
    found = []
    finders = [_contact_details, functools.partial(_names, not_names=not_names)]
    while finders:
        before = len(found)
        for start, end, kind in list(finders[0](masked)):
            if not re.search(_GONE, masked[start:end]):
                found.append(Found(start, end, kind, text[start:end]))
                masked = masked[:start] + _mask(kind, end - start) + masked[end:]
        if len(found) == before:  # one find can bring the next to light
            finders.pop(0)
    return sorted(found, key=lambda hit: hit.start)


def redact(text: str, not_names: Set[str] = NOT_NAMES) -> str:
    """Return `text` with each find replaced by its kind in brackets: `[email]`."""
    for hit in reversed(find(text, not_names)):
        text = f"{text[: hit.start]}[{hit.kind}]{text[hit.end :]}"
    return text


def _swap(text: str, kinds: Mapping[str, Kind]) -> str:
    choices = "|".join(
        re.escape(known) for known in sorted(kinds, key=len, reverse=True)
    )
    # Not within a longer word, number or date.
    rule = rf"(?<![\w-])(?:{choices})(?!\w|[-.,]\d)" if kinds else r"(?!)"
    return re.sub(rule, lambda match: f"[{kinds[match[0]]}]", text)


def redact_trace(
    trace: dict[str, Any], key: bytes | None = None, not_names: Set[str] = NOT_NAMES
) -> tuple[dict[str, Any], list[Found]]:
    """Return a redacted copy of `trace` and what was found in its question.

    Messages and comments are searched, and lose what the question gave away, down to
    one word of a name (`forwarded to Nadia`), also where only an e-mail spells it. SQL,
    rows and fenced code lose whole e-mails, phones and full names only: an extension of
    2026 must not spoil a date. With a `key`, user and session become pseudonyms, so
    traces still group by person; `secrets.token_bytes()` makes a key to forget.

    Raises ValueError where no span has a question in text.
    """
    try:
        # A foreign log may begin with a tool's span: the question is in the first chat.
        asked = (s["attributes"].get("gen_ai.input.messages") for s in trace["spans"])
        question = next(messages for messages in asked if messages)[-1]
        found = find(question["content"], not_names)
    except (AttributeError, KeyError, IndexError, TypeError, StopIteration) as error:
        raise ValueError(
            "redact_trace needs a text in the 'content' of the last of the first "
            "'gen_ai.input.messages' among trace['spans']"
        ) from error
    loose = {hit.text: hit.kind for hit in found}
    # A single name (`Dev`) or a number is a word like any other in SQL.
    whole = {text: kind for text, kind in loose.items() if not text.isalnum()}
    for hit in found:
        local = hit.text.split("@")[0]
        if hit.kind == "name" or (hit.kind == "email" and "." in local):
            words = (w.capitalize() for w in re.findall(r"[^\W\d_]{3,}", local))
            loose |= {w: "name" for w in words if w.casefold() not in not_names}

    def clean(value: Any, prose: bool = False) -> Any:
        if isinstance(value, dict):
            return {k: clean(v, k in ("content", "comment")) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(item, prose) for item in value]
        if not isinstance(value, str):
            return value
        parts = _FENCE.split(value) if prose else ["", value]
        parts[::2] = [_swap(redact(part, not_names), loose) for part in parts[::2]]
        parts[1::2] = [_swap(part, whole) for part in parts[1::2]]
        return "".join(parts)

    cleaned = clean(trace)
    for field in ("user_id", "session_id") if key else ():
        if trace.get(field):
            digest = hmac.new(key, trace[field].encode(), "sha256").hexdigest()
            cleaned[field] = digest[:16]
    return cleaned, found


def score(
    found: Mapping[str, Sequence[Found]],
    truth: Mapping[str, Sequence[Mapping[str, str]]],
) -> dict[str, dict[str, int]]:
    """Count finds against marked spans by trace id, per kind and over `all`.

    `marked` spans that lie whole in one find are `covered`: recall = covered / marked.
    `reported` finds that hold a marked span or lie in one are `right`: precision =
    right / reported. Marks carry no place, so texts are compared. For a table:
    `pandas.DataFrame(score(found, truth)).T`.
    """
    columns = ("marked", "covered", "reported", "right")
    counts = {kind: dict.fromkeys(columns, 0) for kind in (*KINDS, "all")}
    for trace_id in found.keys() | truth.keys():
        hits = found.get(trace_id, ())
        marks = truth.get(trace_id, ())
        for mark in marks:
            for row in (counts[mark["type"]], counts["all"]):
                row["marked"] += 1
                row["covered"] += any(mark["text"] in hit.text for hit in hits)
        for hit in hits:
            near = (m["text"] in hit.text or hit.text in m["text"] for m in marks)
            right = any(near)
            for row in (counts[hit.kind], counts["all"]):
                row["reported"] += 1
                row["right"] += right
    return counts
