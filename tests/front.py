"""The README's first screen: what was found, in sentences, a table and a figure."""

import contextlib
import io
import json
import textwrap
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np

from utils.costs.bill import count
from utils.course import plots

ROOT = Path(__file__).resolve().parents[1]


def compute():
    """Run the cells of notebook 10 up to its crossing; return the names that they set.

    In quick mode they read the shipped runs. A copy of them here would drift.
    """
    notebook = nbformat.read(ROOT / "notebooks/10_compare_costs.ipynb", as_version=4)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(ROOT):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                exec(cell.source, names)
            if "crossing" in names:
                break
    plt.close("all")
    return names


def with_people(names, system, tier):
    """Compare a system of ours with the API, people in its price."""
    return replace(names["compare"](tier, system=system), **names["paid"])


def usd(price):
    """Write a price to two digits: '0.068', '2,000'."""
    rounded = float(f"{price:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def percent(share):
    return f"{100 * share:.0f} %"


def finding(names):
    """Tell the course's finding; `names` are those of `compute`."""
    right = {name: percent(one.value) for name, one in names["rate"].items()}
    dear, cheap = (count(names["crossing"][names[tier]]) for tier in ("DEAR", "CHEAP"))
    card = json.loads((ROOT / "data/runs/09_load/card.json").read_text())
    text = (
        "**What we found.** Write the prompt first: with every house rule in it the "
        f"frontier API is right on {right['prompt: ' + names['best']]} of our "
        f"questions, with the prompt at launch on {right['prompt: launch']}, and at "
        f"today's {count(names['today'])} questions a month nothing else is cheaper. A "
        f"small model of our own on {card['hardware']['cores']} CPU cores is right on "
        f"{right['own model']}, and on {right['routed']} when it passes on the "
        f"{percent(names['passed'].value)} that it is unsure of. With people in the "
        f"price, that pair pays from **{dear} questions a month** against an expensive "
        f"API model, and from {cheap} against a cheap one."
    )
    return "\n".join(textwrap.wrap(text, 88))


def table(names):
    """Write a row for each way to answer: right, and prices at two volumes."""
    cheap, dear, best = names["CHEAP"], names["DEAR"], names["best"]
    volumes = names["today"], names["crossing"][dear]
    first, second = (count(volume) for volume in volumes)
    rows = [
        f"| way to answer | right, % | USD per 1,000 right, at {first} a month "
        f"| at {second} a month |",
        "| --- | --- | --- | --- |",
    ]
    api = {
        "API, prompt at launch, cheap model": ("launch", cheap),
        "API, best prompt, cheap model": (best, cheap),
        "API, best prompt, expensive model": (best, dear),
    }
    for label, (prompt, tier) in api.items():
        prices = [names["compare"](tier, prompt).api(volume) for volume in volumes]
        rows.append(row(label, names["rate"][f"prompt: {prompt}"], prices))
    own = {
        "own model alone": "own model",
        "own model, unsure ones to the expensive model": "routed",
    }
    for label, system in own.items():
        market = with_people(names, system, dear)
        prices = [market.all_in(volume) for volume in volumes]
        rows.append(row(label, names["rate"][system], prices))
    text = (
        f"Right: of {names['rate']['routed'].n} frozen questions, with a 95 % "
        f"interval. The prices are list prices of {cheap} and {dear}, with the "
        "cheapest cache, and of CPU cores; the own model's contain the people who keep "
        "it. One frontier model gave the recorded replies, and we assume that both "
        "priced ones answer like it."
    )
    return "\n".join([*rows, "", *textwrap.wrap(text, 88)])


def row(label, right, prices):
    """Write a row of the table; prices are USD of one right answer."""
    share = right.percent(0).replace(" %", "")
    return f"| {label} | {share} | {' | '.join(usd(1000 * one) for one in prices)} |"


def draw(names):
    """Draw the price of a right answer over the volume, and mark where ours is lower.

    The figure is as narrow as a phone, so that its letters are read there.
    """
    question = "When does a model of your own pay?"
    axes = plots.figure(question, figsize=(5, 4))
    grid = np.geomspace(1e3, 1e10, 71)
    above = {"textcoords": "offset points", "ha": "left"}
    tiers = {"cheap": names["CHEAP"], "expensive": names["DEAR"]}  # as in notebook 10
    for (word, tier), colour in zip(tiers.items(), plots.COLOURS, strict=False):
        market = with_people(names, "routed", tier)
        theirs = [1000 * market.api(volume) for volume in grid]
        axes.loglog(grid, theirs, "--", color=colour)
        axes.loglog(grid, [1000 * market.all_in(v) for v in grid], "-", color=colour)
        label = f"best prompt, {word} API"
        axes.annotate(label, (grid[0], theirs[-1]), (2, -15), color=colour, **above)
        crossing = names["crossing"][tier]
        if np.isfinite(crossing):
            at = crossing, 1000 * market.api(crossing)
            axes.plot(*at, "o", color=colour, markersize=8)
            axes.annotate(count(crossing), at, (5, 8), weight="bold", **above)
    high = 2e5, 1000 * market.all_in(1e5)
    axes.annotate("own model with the API,\npeople included", high, (4, 0), **above)
    axes.set_xticks([1e3, 1e6, 1e9], ["1,000", "1 million", "1 billion"])
    axes.set_yticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
    axes.minorticks_off()
    axes.set_ylim(bottom=0.02)
    axes.set_xlabel("questions a month")
    axes.set_ylabel("USD per 1,000 right answers")
    return axes
