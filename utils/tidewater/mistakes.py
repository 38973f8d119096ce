"""Which house rules a query breaks, found by comparing it with the analyst's query.

A reader that is no model: it sees the text of two queries, and several mistakes in one.
"""

import re
from collections.abc import Callable

CODES = {
    "samples_counted": "free samples are left in where they never count",
    "nickname_misread": "'the Coast', 'back East', 'trade' or 'DTC' read as others",
    "late_definition": "late is not 'more than 2 days after the promised date'",
    "unpaid_counted": "unpaid orders are left in; no text says that they count not",
    "spam_counted": "spam tickets are left in",
    "csat_definition": "CSAT is not the share of ratings 4 or 5",
    "churn_trials": "subscriptions of 14 days or less count as churn",
    "date_basis": "the period is applied to the wrong date",
    "refund_base": "the refund rate is over the wrong orders",
    "active_window": "'active' is not 'a paid order in the last 60 days'",
    "ranking_size": "a ranking with no number does not show 5",
}

# The analyst's query states the rule by these characters, spaces left out; a query that
# has none of the characters beside them breaks it.
_STATED = {
    "samples_counted": ("category<>'sample'", "'sample'"),
    "unpaid_counted": ("status='paid'", "'paid'"),
    "refund_base": ("status<>'cancelled'", "status<>|status!=|statusin|status='paid'"),
    "spam_counted": ("topic<>'spam'", "'spam'"),
    "csat_definition": ("rating>=4", "rating>=4|rating>3|ratingin"),
    "churn_trials": (">14", ">14|>=15"),
    "late_definition": ("promised_date)>2", ">2|>=3|'[+-]2day"),
}


def mistakes(sql: str, right: str, question: str = "") -> set[str]:
    """Return the codes of the rules that `sql` breaks and `right` states."""
    ours, theirs = _flat(right), _flat(sql)
    found = set()
    for code, (stated, kept) in _STATED.items():
        if stated in ours and not re.search(kept, theirs):
            found.add(code)
    for code, differ in _DIFFER.items():
        if differ(theirs, ours):
            found.add(code)
    if "active" in question.lower() and "2026-05-0" not in theirs + _days(theirs):
        found.add("active_window")
    return found


def _flat(sql: str) -> str:
    return re.sub(r"\s+", "", sql).lower()


def _days(sql: str) -> str:
    """Say the first of the last 60 days where a query reckons it from today."""
    return "2026-05-01" if re.search(r"'-(59|60)days?'", sql) else ""


def _values(column: str) -> Callable[[str], set[str]]:
    """Make a function that lists the values a query compares a column with."""

    def listed(sql: str) -> set[str]:
        found = re.findall(rf"{column}(?:=|in\()((?:'\w+',?)+)", sql)
        return set(re.findall(r"'(\w+)'", " ".join(found)))

    return listed


def _dated(sql: str) -> set[str]:
    """List the columns of dates that bound the period or name the month."""
    bounds = r"(\w+_date)(?:between|>=?'|<=?'|>=?date|<=?date)"
    months = r"(?:strftime\('%y-%m',|substr\()(\w+_date)"
    return set(re.findall(bounds, sql)) | set(re.findall(months, sql))


def _limit(sql: str) -> list[str]:
    return re.findall(r"limit(\d+)", sql)[-1:]


_DIFFER: dict[str, Callable[[str, str], bool]] = {
    "nickname_misread": lambda sql, right: any(
        _values(column)(sql) != _values(column)(right)
        for column in ("region", "segment")
    ),
    "date_basis": lambda sql, right: bool(
        _dated(right) and _dated(sql) - _dated(right)
    ),
    "ranking_size": lambda sql, right: _limit(sql) != _limit(right),
}
