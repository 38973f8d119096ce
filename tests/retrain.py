"""Train one shipped run again and compare: `make retrain`, weekly on GitHub.

A costly run is known by its configuration, not by the code that trained. So nothing
else would notice a recipe that learns otherwise, and whose version nobody raised. The
run is the shortest one of notebook 04: 400 steps on 100 reviewed traces, then the 500
questions of eval and dev. Ends with 1 where a figure is outside of its band.
"""

import json
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from utils import tidewater  # noqa: E402
from utils.course.costly import digest_data  # noqa: E402
from utils.course.run import SHIPPED, read_rows  # noqa: E402
from utils.training import cpu  # noqa: E402

REVIEWS = 100
RUN = SHIPPED / f"04_{REVIEWS}_reviews"
# Sums in another order, by other threads, processors or libraries, make the steps after
# them drift apart. In float32, with one thread and not two, losses of an earlier run
# differed by at most 1 in 10,000; a dropout of 0.05 moved the one at step 40 by 1 in
# 200. How far bfloat16 drifts from machine to machine was not measured.
LOSS_SHARE, LOSS_LEAST, RIGHT = 0.003, 0.0003, 12
CASES = tidewater.load_cases("eval") + tidewater.load_cases("practice", 250)


def rebuild(config):
    """Put the rows in place of the digests that the run card has of them."""
    made = {
        # Those of reviewed traces come first, the variants after them.
        "data": read_rows(SHIPPED / "04_train.examples.jsonl")[:REVIEWS],
        "validation": read_rows(SHIPPED / "04_validation.examples.jsonl"),
        "questions": [case["question"] for case in CASES],
    }
    for name, rows in made.items():
        if digest_data(rows) != config[name]:
            sys.exit(f"{name} are no longer those of {RUN}: {config[name]}")
    return config | made


def compare(shipped, now):
    """List (figure, shipped, now, how far apart they may be)."""
    table = []
    logs = list(zip(logged(shipped), logged(now), strict=True))
    for old, new in logs:
        name, losses = f"loss at step {old['step']}", (old["loss"], new["loss"])
        table.append((name, *losses, LOSS_SHARE * losses[0] + LOSS_LEAST))
    losses = shipped["validation_loss"], now["validation_loss"]
    table.append(("validation loss", *losses, LOSS_SHARE * losses[0] + LOSS_LEAST))
    sizes = shipped["trained_weights"], now["trained_weights"]
    table.append(("trained weights", *sizes, 0))
    rates = sum(old["learning_rate"] != new["learning_rate"] for old, new in logs)
    table.append(("learning rates that differ", 0, rates, 0))
    # Tokens of the first example, and whether each is learned.
    pairs = zip_longest(shipped["mask"], now["mask"])
    masks = sum(old != new for old, new in pairs)
    table.append(("tokens with another mask", 0, masks, 0))
    table.append((f"right of {len(CASES)}", right(shipped), right(now), RIGHT))
    return table


def logged(result):
    return [row for row in result["log"] if "loss" in row]


def right(result):
    return sum(grade.correct for grade in tidewater.grade(CASES, result["replies"]))


def main():
    card = json.loads((RUN / "card.json").read_text(encoding="utf-8"))
    shipped = json.loads((RUN / "result.json").read_text(encoding="utf-8"))
    shipped["log"] = read_rows(RUN / "log.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        now = cpu.train_sft(rebuild(card["config"]) | {"output_dir": folder})
    table = compare(shipped, now)
    print(f"{'':26} {'shipped':>12} {'now':>12} {'may differ by':>14}")
    for name, old, new, band in table:
        outside = " OUTSIDE" if abs(old - new) > band else ""
        print(f"{name:26} {old:12.6g} {new:12.6g} {band:14.3g}{outside}")
    same = sum(a == b for a, b in zip(shipped["replies"], now["replies"], strict=True))
    print(f"{same} of {len(CASES)} replies are the shipped ones to the letter.")
    print(f"{now['seconds'] / 60:.1f} minutes of training, {card['seconds'] / 60:.1f}")
    print(f"with the replies where it was shipped from, {card['commit']}.")
    if any(abs(old - new) > band for _, old, new, band in table):
        sys.exit(
            "The recipe learns otherwise than when this run was made. If it should, "
            "raise the version of the runs it changes (`costly.run(..., version=2)`) "
            "and make them anew. If not, see `git diff <commit> -- utils/training`."
        )


if __name__ == "__main__":
    main()
