"""Draw support messages of an invented e-bike company as structured facts, with the routing that its house policy asks for.

A case is a message; the right answer is JSON {"queue", "priority", "lock"}. `route` is the policy; the launch prompt does not state it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

TIERS = ["basic", "plus", "fleet"]
BIKES = ["Cargo 2", "City Light", "Fold S", "Tour Max", "Kid Trailer"]
TOPICS = {  # topic: weight
    "charge": 16,
    "battery": 14,
    "crash_damage": 7,
    "late_delivery": 11,
    "damaged_on_arrival": 8,
    "login": 8,
    "stolen": 8,
    "cancel": 10,
    "app_bug": 9,
    "spare_part": 7,
    "heat_or_smoke": 5,
    "invoice_copy": 7,
}


def draw(rng: random.Random) -> dict:
    topic = rng.choices(list(TOPICS), list(TOPICS.values()))[0]
    spec = {
        "topic": topic,
        "tier": rng.choices(TIERS, [60, 25, 15])[0],
        "bike": rng.choice(BIKES),
    }
    spec["tier_said"] = spec["tier"] == "fleet" or rng.random() < 0.35
    if topic == "charge":
        spec["amount"] = rng.choice([12, 19, 29, 49, 89, 120, 180, 240, 310, 460, 899])
        spec["kind"] = rng.choice(
            [
                "charged twice",
                "charged after return",
                "unknown charge",
                "wrong plan price",
            ]
        )
    if topic == "battery":
        spec["age_months"] = rng.choice([2, 5, 9, 14, 20, 23, 26, 31, 40])
        spec["kind"] = rng.choice(
            [
                "range has halved",
                "does not charge",
                "cuts out on hills",
                "light blinks red",
            ]
        )
    if topic == "crash_damage":
        spec["injury"] = rng.random() < 0.4
    if topic == "late_delivery":
        spec["days_late"] = rng.choice([2, 3, 5, 6, 8, 11, 14, 20])
    if topic == "stolen":
        spec["police"] = rng.random() < 0.5
    if topic == "cancel":
        spec["reason"] = rng.choice(
            ["moving away", "too expensive", "bad service", "bought a car", "no reason"]
        )
    if topic == "heat_or_smoke":
        spec["kind"] = rng.choice(
            ["battery got very hot", "smell of burning", "smoke from the charger"]
        )
    if topic == "app_bug":
        spec["kind"] = rng.choice(
            [
                "cannot unlock the bike",
                "map is blank",
                "app crashes at start",
                "wrong trip history",
            ]
        )
        spec["stranded"] = (
            spec["kind"] == "cannot unlock the bike" and rng.random() < 0.5
        )
    return spec


def route(spec: dict) -> dict:
    """The house policy."""
    topic, tier = spec["topic"], spec["tier"]
    lock, priority = False, 3
    queue = {
        "charge": "billing",
        "battery": "repairs",
        "crash_damage": "repairs",
        "late_delivery": "delivery",
        "damaged_on_arrival": "repairs",
        "login": "account",
        "stolen": "account",
        "cancel": "retention",
        "app_bug": "app",
        "spare_part": "sales",
        "heat_or_smoke": "safety",
        "invoice_copy": "billing",
    }[topic]
    if topic == "charge" and spec["amount"] >= 200:
        priority = 2
    if topic == "battery":
        if spec["age_months"] > 24:
            queue = "sales"  # out of warranty: a new one is sold, not repaired
        elif spec["kind"] == "cuts out on hills":
            priority = 2
    if topic == "crash_damage":
        if spec["injury"]:
            queue, priority = "safety", 1
        else:
            priority = 2
    if topic == "late_delivery" and spec["days_late"] > 7:
        priority = 2
    if topic == "damaged_on_arrival":
        priority = 2
    if topic == "stolen":
        lock, priority = True, 1 if not spec["police"] else 2
    if topic == "heat_or_smoke":
        lock, priority = True, 1
    if topic == "app_bug" and spec.get("stranded"):
        priority = 1
    if topic == "cancel" and spec["reason"] == "bad service":
        priority = 2
    if tier == "fleet":
        priority = max(1, priority - 1)
        if queue in ("billing", "retention"):
            queue = "fleet_desk"
    return {"queue": queue, "priority": f"p{priority}", "lock": lock}


def facts(spec: dict) -> str:
    t = spec["topic"]
    what = {
        "charge": lambda: (
            f"billing problem: {spec['kind']}, amount {spec['amount']} EUR"
        ),
        "battery": lambda: (
            f"battery of the {spec['bike']}: {spec['kind']}; bought {spec['age_months']} months ago"
        ),
        "crash_damage": lambda: (
            f"crashed the {spec['bike']}, it is damaged; "
            + (
                "the rider (or someone) was HURT, say so"
                if spec["injury"]
                else "nobody hurt (say nothing of injuries, or that all are fine)"
            )
        ),
        "late_delivery": lambda: (
            f"delivery of the {spec['bike']} is {spec['days_late']} days late"
        ),
        "damaged_on_arrival": lambda: (
            f"the {spec['bike']} (or a part of it) arrived damaged"
        ),
        "login": lambda: "cannot log in / password / e-mail change of the account",
        "stolen": lambda: (
            f"the {spec['bike']} was stolen; "
            + (
                "a police report has been filed, say so"
                if spec["police"]
                else "no police report yet (say nothing about police, or that it is not done)"
            )
        ),
        "cancel": lambda: f"wants to cancel the plan; reason: {spec['reason']}",
        "app_bug": lambda: (
            f"app problem: {spec['kind']}"
            + (
                "; the rider is stuck right now because of it, say so"
                if spec.get("stranded")
                else "; nobody is stuck"
            )
        ),
        "spare_part": lambda: (
            f"wants to buy a spare part or accessory for the {spec['bike']}"
        ),
        "heat_or_smoke": lambda: f"{spec['kind']} ({spec['bike']})",
        "invoice_copy": lambda: (
            "needs a copy of an invoice / an invoice with another address"
        ),
    }[t]()
    who = {
        "basic": "on the Basic plan",
        "plus": "on the Plus plan",
        "fleet": "a business on the Fleet plan",
    }[spec["tier"]]
    return what + (
        f"; customer is {who}: this must be understood from the text"
        if spec["tier_said"]
        else "; say nothing about the plan"
    )


def main(n: int = 640, seed: int = 8) -> None:
    rng = random.Random(seed)
    rows = []
    while len(rows) < n:
        spec = draw(rng)
        rows.append(
            {
                "id": f"t{len(rows):04d}",
                "facts": facts(spec),
                "answer": route(spec),
                "spec": spec,
            }
        )
    here = Path(__file__).parent
    (here / "tickets_specs.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows)
    )
    for k in range(2):
        (here / f"facts_{k}.txt").write_text(
            "".join(
                f"{r['id']}\t{r['facts']}\n"
                for r in rows[k * n // 2 : (k + 1) * n // 2]
            )
        )
    print(Counter((r["answer"]["queue"], r["answer"]["priority"]) for r in rows))


if __name__ == "__main__":
    main()
