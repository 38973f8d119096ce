"""More training examples from the same logs: other names, one more condition.

A small model that saw two conditions apart need not manage them together. Both
functions change a question and its query alike, by a glossary: by kind of phrase, what
the users say and the SQL condition that it stands for.
"""

import random
import re
from collections.abc import Mapping

from utils.tidewater import sql_style as sqlstyle

Glossary = Mapping[str, Mapping[str, str]]
_END = re.compile(r"[?.!](?=\s|$)|$")  # of the first sentence


def swap(
    question: str, sql: str, glossary: Glossary, rng: random.Random
) -> tuple[str, str]:
    """Say another name of the same kind, in the question and in its query.

    Kinds of which the question has no phrase, or the query not just one condition, stay
    as they are; so the result may be what was given.
    """
    for phrases in glossary.values():
        found = [
            phrase
            for phrase, condition in phrases.items()
            if sql.count(condition) == 1 and len(_places(phrase, question)) == 1
        ]
        if not found:
            continue
        old = max(found, key=len)
        others = [p for p, condition in phrases.items() if condition not in sql]
        if not others:
            continue
        new = rng.choice(others)
        start, end = _places(old, question)[0]
        said = new.lower() if question.islower() else new
        question = question[:start] + said + question[end:]
        sql = sql.replace(phrases[old], phrases[new])
    return question, sqlstyle.normalise(sql)


def narrow(
    question: str,
    sql: str,
    glossary: Glossary,
    tables: Mapping[str, str],
    rng: random.Random,
) -> tuple[str, str]:
    """Ask for less: add a phrase to a question and its condition to the query.

    Args:
        question: in plain language.
        sql: its query. With several SELECTs, an OR or no WHERE it stays as it is.
        glossary: phrases that can stand before or after a question.
        tables: the table of each column that only one table has.
        rng: draws the phrase and its place.

    """
    table = re.search(r"\bfrom (\w+)", sql)
    if not table or sql.count("select") != 1 or sql.count(" where ") != 1:
        return question, sql
    options = [
        pair
        for phrases in glossary.values()
        if (column := re.match(r"\w+", next(iter(phrases.values())))[0])
        and tables.get(column, table[1]) == table[1]
        and not re.search(rf"\b{column}\b(?!<>)", sql)  # what is left out may stay
        for pair in [rng.choice(list(phrases.items()))]
    ]
    if not options or " or " in sql:
        return question, sql
    phrase, condition = rng.choice(options)
    if rng.random() < 0.5:
        question = f"{phrase[0].upper()}{phrase[1:]}: {question}"
    else:
        end = _END.search(question).start()
        question = f"{question[:end].rstrip()} {phrase}{question[end:]}"
    sql = sql.replace(" where ", f" where {condition} and ")
    return question, sqlstyle.normalise(sql)


def returned(sql: str) -> str:
    """Return a query's columns with texts blanked: the same for queries of one kind."""
    return re.sub(r"'[^']*'", "?", sql.split(" from ")[0])


def _places(phrase: str, question: str) -> list[tuple[int, int]]:
    """Where a phrase stands as words of its own, in any case."""
    words = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
    return [found.span() for found in words.finditer(question)]
