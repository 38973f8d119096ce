"""More training examples from the same logs: other names, one more condition.

A small model that saw two conditions apart need not manage them together. Both
functions change a question and its query alike, by a glossary: by kind of phrase, what
the users say and the SQL condition that it stands for.
"""

import random
import re
from collections.abc import Mapping

from utils.tidewater.sql_style import normalise

Glossary = Mapping[str, Mapping[str, str]]
_END = re.compile(r"[?.!](?=\s|$)|$")  # of the first sentence


def substitute_entities(
    question: str, sql: str, glossary: Glossary, rng: random.Random
) -> tuple[str, str]:
    """Say another name of the same kind, in the question and in its query.

    Kinds of which the question has no phrase, or the query not just one condition, stay
    as they are; so the result may be what was given.
    """
    for phrases in glossary.values():
        once = [p for p in phrases if sql.count(phrases[p]) == 1]
        found = [p for p in once if len(_places(p, question)) == 1]
        others = [p for p in phrases if phrases[p] not in sql]
        if not found or not others:
            continue
        old = max(found, key=len)
        new = rng.choice(others)
        start, end = _places(old, question)[0]
        said = new.lower() if question.islower() else new
        question = question[:start] + said + question[end:]
        sql = sql.replace(phrases[old], phrases[new])
    return question, normalise(sql)


def add_filter(
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
    options = []
    for phrases in glossary.values():
        column = re.match(r"\w+", next(iter(phrases.values())))[0]
        on_it = tables.get(column, table[1]) == table[1]
        used = re.search(rf"\b{column}\b(?!<>)", sql)  # what is left out may stay
        if on_it and not used:
            options.append(rng.choice(list(phrases.items())))
    if not options or " or " in sql:
        return question, sql
    phrase, condition = rng.choice(options)
    if rng.random() < 0.5:
        question = f"{phrase[0].upper()}{phrase[1:]}: {question}"
    else:
        end = _END.search(question).start()
        question = f"{question[:end].rstrip()} {phrase}{question[end:]}"
    sql = sql.replace(" where ", f" where {condition} and ")
    return question, normalise(sql)


def projection(sql: str) -> str:
    """Return a query's columns with texts blanked: the same for queries of one kind."""
    return re.sub(r"'[^']*'", "?", sql.split(" from ")[0])


def _places(phrase: str, question: str) -> list[tuple[int, int]]:
    """Where a phrase stands as words of its own, in any case."""
    words = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
    return [found.span() for found in words.finditer(question)]
