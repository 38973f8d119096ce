"""A worked answer to every exercise. They are answers, so try the exercise first."""

import re

SOLUTIONS = {
    "00.1": 30,
    "00.2": 120,
    "00.3": "no-go",
    "01.1": 1308,
    "01.2": lambda text: re.sub(r"#\d+", "[order]", text),
    "01.3": {
        "trace_id": "0" * 32,
        "time": "2026-07-01T09:00:00",
        "spans": [
            {
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
        ],
    },
    "02.1": 106,
    "02.2": 50.0,
    "02.3": "SELECT 54",
    "03.1": 9,
    "03.2": 2900,
    "03.3": lambda p: [
        min(1, max((len(p) - i) * p[i] for i in range(k + 1))) for k in range(len(p))
    ],
}

# Answers that are almost right: the checks must tell them apart.
NEAR_MISSES = {
    "00.1": 33,
    "00.2": 121,
    "00.3": "not yet",
    "01.1": 1309,
    "01.2": lambda text: re.sub(r"#\w*", "[order]", text),
    "01.3": {
        "trace_id": "0" * 32,
        "time": "2026-07-01T09:00:00",
        "spans": [],
    },
    "02.1": 105,
    "02.2": 55.0,
    "02.3": "SELECT 67",
    "03.1": 10,
    "03.2": 2800,
    "03.3": lambda p: [min(1, (len(p) - k) * p[k]) for k in range(len(p))],
}
