"""Words of Tidewater's users, for `overlap` and `redaction`, which know no product.

They were found by reading the questions of data/traces.jsonl. For a product of your
own read some hundred of yours.
"""

from utils.logs import overlap, redaction

# What one question may have beyond another and still be the same question.
FILLERS = overlap.FILLERS | set(
    """did get give got had has have in just need on see show tell there to want was
    were what whats""".split()  # noqa: SIM905
)

# What stands where a name could in a message to an analytics assistant, and is none.
NOT_NAMES = redaction.NOT_NAMES | set(
    """order orders quarter sales share top total units east west north south northeast
    northwest southeast southwest midwest coast""".split()  # noqa: SIM905
)
