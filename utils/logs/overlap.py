"""Find repeats within a set of questions and contamination between two sets.

A string score cannot tell a repeat from another question: `orders in FY26 Q3` and
`orders in FY26 Q4` differ by one character. So in a near repeat the words must agree as
well, in their order: what one text has beyond the other is politeness, small grammar or
a slip of one letter. Numbers, periods and filters are the same.

Read in Tidewater's traces: of 62 unequal pairs that score 84 or more 10 are repeats, of
15 that score 90 or more 9 are. With the words compared, all 10 stay and no other pair
does, at every threshold from 55 to 89. Repeats in another order (`FY26 Q4 sales` and
`sales in Q4 FY26`) or in quite other words are not found here: compare the SQL, or the
rows it gives.
"""

import re
import unicodedata
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass
from unicodedata import category

import numpy as np
from rapidfuzz import fuzz, process
from rapidfuzz.distance import OSA

# What a text may have beyond another and still ask the same; a product may have more.
FILLERS = frozenset(
    """a an and are asap can cheers could do does for give hello hey hi id is kindly
    let lot me my of our ours please pls plz show tell thank thanks the thx we will
    would you your""".split()  # noqa: SIM905
)
_SIGNS = "%<>=≤≥≠+±×÷−"
_BLOCK = 1024  # rows of the score table held at a time


def normalise(text: str) -> str:
    """Return `text` as lower-case words with one space between, no punctuation.

    Width, accents of Latin letters and characters without a shape do not count. Signs
    that change what is asked are words: `%`, `<`, `=`, currencies, a minus before a
    number, the `#` of C#.
    """
    folded = unicodedata.normalize("NFKD", text).casefold()
    folded = "".join(c for c in folded if category(c) != "Cf")
    folded = re.sub("[\ufe00-\ufe0f]", "", folded)  # says how an emoji is drawn
    # Elsewhere a mark makes another letter: й is not и, and が is not か.
    folded = re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", folded)
    folded = unicodedata.normalize("NFKC", folded)
    folded = re.sub(r"['’]|(?<=\d),(?=\d{3}\b)", "", folded)  # don't; 1,500
    folded = re.sub(r"(?<!\S)-(?=\d)|(?<=[a-z])#", " − ", folded)
    # Letters, their marks (as in Hindi) and numbers.
    words = ""
    for c in folded:
        sign = c in _SIGNS or category(c) == "Sc"
        letter = c == "_" or category(c)[0] in "LMN"
        words += f" {c} " if sign else c if letter else " "
    return " ".join(words.split()) or " ".join(folded.split())


def duplicates(texts: Sequence[str]) -> list[int]:
    """Return for each text the index of the first that is equal after `normalise`.

    So `[t for i, (t, first) in enumerate(zip(texts, duplicates(texts))) if i == first]`
    keeps one of each.
    """
    first: dict[str, int] = {}
    return [first.setdefault(normalise(text), i) for i, text in enumerate(texts)]


def near_duplicates(
    texts: Sequence[str], threshold: float = 60, fillers: Set[str] = FILLERS
) -> list[tuple[int, int, float]]:
    """Return `(i, j, score)` with i < j for near repeats that `normalise` tells apart.

    The score is rapidfuzz's `token_sort_ratio`, 0 to 100.
    `fillers` are the words, in lower case, that only one of the two may have.
    """
    texts = [normalise(text) for text in texts]
    return [
        pair for pair in _near(texts, texts, threshold, fillers) if pair[0] < pair[1]
    ]


@dataclass(frozen=True)
class Contamination:
    """Pairs (train index, test index), each in the first list that it fits."""

    exact: list[tuple[int, int]]
    normalised: list[tuple[int, int]]
    near: list[tuple[int, int, float]]


def contamination(
    train: Sequence[str],
    test: Sequence[str],
    threshold: float = 60,
    fillers: Set[str] = FILLERS,
) -> Contamination:
    """Return what `train` gives away of `test`, split by how plainly it does."""
    left, right = ([normalise(text) for text in texts] for texts in (train, test))
    places: dict[str, list[int]] = {}
    for i, text in enumerate(left):
        places.setdefault(text, []).append(i)
    equal = [(i, j) for j, text in enumerate(right) for i in places.get(text, ())]
    exact = [(i, j) for i, j in equal if train[i] == test[j]]
    normalised = [(i, j) for i, j in equal if train[i] != test[j]]
    near = list(_near(left, right, threshold, fillers))
    return Contamination(exact, normalised, near)


# The name by which earlier code calls it.
leaks = contamination


def same_answers(
    train_answers: Sequence[Hashable], test_answers: Sequence[Hashable]
) -> list[tuple[int, int]]:
    """Return `(train index, test index)` of equal answers; None equals nothing.

    An answer is what says most of a case, as a tuple of its rows on each database. Keep
    their order where the question asks for one, else give a frozenset or sort them.
    """
    places: dict[Hashable, list[int]] = {}
    for i, answer in enumerate(train_answers):
        places.setdefault(answer, []).append(i)
    found = (
        (i, j) for j, answer in enumerate(test_answers) for i in places.get(answer, ())
    )
    return [(i, j) for i, j in found if test_answers[j] is not None]


def _near(
    left: list[str], right: list[str], threshold: float, fillers: Set[str]
) -> Iterator[tuple[int, int, float]]:
    for start in range(0, len(left), _BLOCK):
        rows = left[start : start + _BLOCK]
        scores = process.cdist(
            rows, right, scorer=fuzz.token_sort_ratio, dtype=np.float32
        )
        for row, j in np.argwhere(scores >= threshold).tolist():
            one, other = rows[row], right[j]
            if one != other and _agree(one, other, fillers):
                yield start + row, j, float(scores[row, j])


def _agree(one: str, other: str, fillers: Set[str]) -> bool:
    """Say whether two texts have the same words in order, but for fillers and slips."""
    left, right = ([w for w in t.split() if w not in fillers] for t in (one, other))
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(a == b or _slip(a, b) for a, b in pairs)


def _slip(one: str, other: str) -> bool:
    # Slips spare the first letter; without it `lowest` and `slowest` would be one word.
    alike = one[0] == other[0] and (one + other).isalpha()
    return alike and min(len(one), len(other)) >= 5 and OSA.distance(one, other) == 1
