"""A worked answer to every exercise. They are answers, so try the exercise first."""

import itertools
import json
import math
import re
import statistics

TRACE = {"trace_id": "0" * 32, "time": "2026-07-01T09:00:00"}
TIMED_OUT = {
    "name": "chat frontier-llm",
    "span_id": "0" * 16,
    "kind": "llm",
    "attributes": {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": [{"role": "user", "content": "hello?"}],
        "gen_ai.output.messages": [],
        "error.type": "timeout",
    },
}
MARCH = (
    "SELECT COUNT(*) AS n FROM tickets WHERE opened_date >= '2026-03-01' "
    "AND opened_date < '{end}' AND topic <> 'spam' AND is_test = 0"
)
OFFICE = ("segment='office'", "order by 2 desc", "limit 1")
ALL_TIME = (  # the question asks about a year
    "select carrier,round(avg(julianday(delivered_date)-julianday(shipped_date)),1) "
    "from shipments where is_test=0 and not delivered_date is null and "
    "segment='office' group by 1 order by 2 desc limit 1"
)
LATE = (
    "SELECT region, ROUND(100.0 * SUM(julianday(delivered_date) "
    "- julianday(promised_date) > {days}) / COUNT(*), 1) FROM shipments "
    "WHERE is_test = 0 AND delivered_date IS NOT NULL "
    "AND promised_date LIKE '2026-05-%' GROUP BY region"
)


def queue_of(reply: str) -> str:
    try:
        found = json.loads(reply[reply.index("{") : reply.rindex("}") + 1])
    except ValueError:
        return ""
    return found["queue"]


SOLUTIONS = {
    "00.1": lambda bill, seats, share, own: max(share * seats, own) / bill,
    "00.2": ["switch", "go", "collect", "measure", "stay"],
    "00.3": 388,
    "01.1": 1308,
    "01.2": lambda text: re.sub(r"#\d+", "[order]", text),
    "01.3": TRACE | {"spans": [TIMED_OUT]},
    "02.1": "q1092",
    "02.2": 0.5,
    "02.3": "SELECT 54",
    "03.1": [3, 7, 10],
    "03.2": lambda tokens, plain, write, read, found: (
        tokens * min(plain, found * read + (1 - found) * write)
    ),
    "03.3": lambda candidates, margin: min(
        (usd, name) for name, usd, low in candidates if low >= -margin
    )[1],
    "04.1": MARCH.replace("{end}", "2026-04-01"),
    "04.2": 8 * 10 * 10_176,
    "04.3": 137,
    "04.4": 0.598,
    "05.1": 400,
    "05.2": lambda losses, keep: sorted(
        losses, key=lambda name: (math.isnan(losses[name]), losses[name])
    )[: max(1, len(losses) // keep)],
    "05.3": ("L4", 19.2),
    "06.1": 0.54,
    "06.2": lambda n, c, k: 1 - math.comb(n - c, k) / math.comb(n, k),
    "06.3": 14,
    "06.4": lambda gains, visits: [
        statistics.mean(g for g, v in zip(gains, visits, strict=True) if v == visit)
        for visit in sorted({*visits})
    ],
    "06b.1": 0.942,
    "06b.2": lambda samples: [
        text for text, _, right, _ in sorted(samples, key=lambda one: -one[1]) if right
    ],
    "06b.3": 955,
    "07.1": 2.47,
    "07.2": (
        lambda case, sql, grade: sum(part in (sql or "").lower() for part in OFFICE),
        ALL_TIME,
    ),
    "07.3": lambda right, characters: right * (0.5 + 50 / (100 + characters)),
    "08.1": 128 / 60,
    "08.2": lambda rewards: [
        0 if one is None else one - statistics.mean(r for r in rewards if r in (0, 1))
        for one in rewards
    ],
    "08.3": 68,
    "09.1": 110,
    "09.2": 8,
    "09.3": lambda refused, places, seconds: math.ceil(
        (refused + 1) * seconds / places
    ),
    "09.4": 72,
    "10.1": 0.0947,
    "10.2": ["stands", "falls", "open", "falls", "stands"],
    "10.3": lambda once, months, monthly, own, own_right, api, api_right: (
        (once / months + monthly) / (api * own_right / api_right - own)
        if api * own_right / api_right > own
        else math.inf
    ),
    "11.1": 9,
    "11.2": lambda lost, rate: list(
        itertools.accumulate(
            (2 * rate if one else 2 - 2 * rate for one in lost), lambda a, b: a * b
        )
    ),
    "11.3": LATE.replace("{days}", "3"),
    "11.4": 0.262,
    "12.1": 510,
    "12.2": queue_of,
    "12.3": 0.565,
}

# Answers that are almost right: the checks must tell them apart.
NEAR_MISSES = {
    "00.1": lambda bill, seats, share, own: share * seats / bill,
    "00.2": ["go", "go", "collect", "measure", "stay"],
    "00.3": 194,
    "01.1": 1309,
    "01.2": lambda text: re.sub(r"#\w*", "[order]", text),
    "01.3": TRACE | {"spans": []},
    "02.1": "q1305",
    "02.2": 0.55,
    "02.3": "SELECT 67",
    "03.1": [3, 7],
    "03.2": lambda tokens, plain, write, read, found: (
        tokens * (found * read + (1 - found) * write)
    ),
    "03.3": lambda candidates, margin: min(
        (usd, name) for name, usd, low in candidates if low > -margin
    )[1],
    "04.1": MARCH.replace("{end}", "2026-03-31"),
    "04.2": 8 * 30 * 10_176,
    "04.3": 138,
    "04.4": 0.453,
    "05.1": 16 * 10 + 8 * 20 + 4 * 40 + 2 * 80,
    "05.2": lambda losses, keep: sorted(losses, key=losses.get)[: len(losses) // keep],
    "05.3": ("L4", 9.6),
    "06.1": 0.577,
    "06.2": lambda n, c, k: 1 - (1 - c / n) ** k,
    "06.3": 13,
    "06.4": lambda gains, visits: [
        sum(g for g, v in zip(gains, visits, strict=True) if v == visit) / len(gains)
        for visit in sorted({*visits})
    ],
    "06b.1": 0.3**8,
    "06b.2": lambda samples: [text for text, _, right, _ in samples if right],
    "06b.3": 940,
    "07.1": 2.646,
    "07.2": (lambda case, sql, grade: float(grade.correct), ALL_TIME),
    "07.3": lambda right, characters: right - characters / 1000,
    "08.1": 10,  # places
    "08.2": lambda rewards: [  # ungraded ones count as wrong
        (one or 0) - sum(r or 0 for r in rewards) / len(rewards) for one in rewards
    ],
    "08.3": 69,
    "09.1": 116,
    "09.2": 6.4,
    "09.3": lambda refused, places, seconds: math.ceil(refused * seconds / places),
    "09.4": 59,
    "10.1": 0.0431,
    "10.2": ["stands", "falls", "open", "open", "stands"],
    "10.3": lambda once, months, monthly, own, own_right, api, api_right: (
        (once / months + monthly) / (api - own) if api > own else math.inf
    ),
    "11.1": 7,
    "11.2": lambda lost, rate: [2 * rate if one else 2 - 2 * rate for one in lost],
    "11.3": LATE.replace("{days}", "2"),
    "11.4": 0.3,  # the sum of the chances
    "12.1": 608,  # two separate samples, each
    "12.2": lambda reply: json.loads(reply.strip("`json\n") or "{}").get("queue", ""),
    "12.3": 22.6 / 120,
}
