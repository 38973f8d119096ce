"""One look for every figure: readable in grey, intervals drawn, units on the axes."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from pandas.io.formats.style import Styler

from utils.evals.stats import paired_difference

# Dark to light, so that the order survives a grey printer.
COLOURS = ("#1b3a4b", "#b5541c", "#4f8a8b", "#c9a227", "#8d99ae")
INK, FAINT = "#222222", "#d9d9d9"

STYLE = {
    "figure.figsize": (7.2, 3.6),
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "axes.prop_cycle": cycler(color=COLOURS)
    + cycler(linestyle=["-", "--", "-.", ":", "-"]),
}


def figure(question: str, rows: int = 1, columns: int = 1, **settings: Any) -> Any:
    """Open a figure in the course's style, its title a question.

    Returns the axes: one, or an array of `rows` x `columns`.
    """
    plt.rcParams.update(STYLE)
    drawing, axes = plt.subplots(rows, columns, **settings)
    if rows * columns == 1:
        axes.set_title(question)
    else:
        drawing.suptitle(question, x=0.01, ha="left", weight="bold", size=11)
    return axes


def bars(
    axes: Axes,
    intervals: Mapping[str, Any],
    unit: str,
    scale: float = 1.0,
    digits: int = 1,
    highlight: Sequence[str] = (),
) -> None:
    """Draw one horizontal bar a name, with its interval and its value in words.

    Args:
        axes: where to draw.
        intervals: name -> an object with value, low and high.
        unit: label of the value axis.
        scale: what values are multiplied with (100 for percent).
        digits: decimals of the written values.
        highlight: names whose bars are drawn dark; none: all are.

    """
    names = list(intervals)
    values = [intervals[name].value * scale for name in names]
    below = [v - intervals[n].low * scale for n, v in zip(names, values, strict=True)]
    above = [intervals[n].high * scale - v for n, v in zip(names, values, strict=True)]
    dark = [not highlight or name in highlight for name in names]
    axes.barh(
        range(len(names)),
        values,
        color=[COLOURS[0] if d else COLOURS[4] for d in dark],
        xerr=[[max(0, b) for b in below], [max(0, a) for a in above]],
        error_kw={"ecolor": COLOURS[1], "elinewidth": 1.6, "capsize": 3},
        height=0.62,
    )
    ends = [v + max(0, a) for v, a in zip(values, above, strict=True)]
    for row, (value, end) in enumerate(zip(values, ends, strict=True)):
        axes.annotate(
            f"{value:,.{digits}f}",
            (end, row),
            (5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, max(ends) * 1.2 or 1)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top, in shared axes too
    if scale == 100:
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)


class LiveCurve:
    """A loss curve that grows in the notebook while a training runs.

    `draw` takes the log's rows, each with step and loss or eval_loss; it redraws at
    most every `pause` seconds, so that drawing costs the training nothing.
    """

    def __init__(self, question: str, pause: float = 10.0) -> None:
        self.axes = figure(question)
        plt.close(self.axes.figure)  # shown by its handle alone
        self.handle, self.pause, self.drawn = None, pause, -pause

    def draw(self, rows: Sequence[Mapping[str, Any]], last: bool = False) -> None:
        """Draw anew, unless it was drawn just now and this is not the `last` time."""
        if time.monotonic() - self.drawn < self.pause and not last:
            return
        self.drawn = time.monotonic()
        losses(self.axes, rows)
        if self.handle is None:
            self.handle = display(self.axes.figure, display_id=True)
        else:
            self.handle.update(self.axes.figure)


def losses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training and the validation loss of a log over its steps."""
    question = axes.get_title(loc="left")
    axes.clear()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        found = [(row["step"], row[key]) for row in rows if key in row]
        if found:
            mark = "o" if key == "eval_loss" else None
            axes.plot(*zip(*found, strict=True), label=label, marker=mark)
    axes.set_title(question, loc="left")
    axes.set_xlabel("training steps")
    axes.set_ylabel("loss, nats a token")
    axes.set_yscale("log")
    axes.legend()


def text_table(frame: pd.DataFrame) -> Styler:
    """Show a table of texts: aligned left, lines broken, nothing cut off."""
    left = {"selector": "td, th", "props": "text-align: left; vertical-align: top"}
    return frame.style.set_table_styles([left])


def ladder(
    steps: Sequence[Mapping[str, Any]],
    dollars: Mapping[str, Sequence[float | None]] | None = None,
) -> Axes:
    """Draw the course's ladder: one bar a step, from the notebooks' results files.

    Beside each bar stands its paired difference to the bar before and, where it is
    known, what a thousand right answers cost.

    Args:
        steps: each with name, value, low, high (fractions of 1), n, and right: whether
            each case was answered rightly, the same cases in the same order.
        dollars: name of a bar -> USD per 1,000 right answers: value, low and high. A
            value of None is that of a bar without a right answer.

    """
    axes = figure(
        "How right is each way to answer, and what does it cost?"
        if dollars
        else "How right is each way to answer?",
        figsize=(9.6 if dollars else 7.6, 1.0 + 0.42 * len(steps)),
    )
    named = {step["name"]: SimpleNamespace(**step) for step in steps}
    bars(axes, named, f"right on all three databases, % of {steps[0]['n']} cases", 100)
    for row, (before, step) in enumerate(itertools.pairwise(steps), start=1):
        gain = paired_difference(before["right"], step["right"]).difference
        axes.annotate(gain.points(), (118, row), va="center", fontsize=9)
    axes.annotate("gain over the bar above", (118, 0), va="center", fontsize=9)
    axes.set_xlim(0, 185)
    if dollars:
        axes.set_xlim(0, 250)
        axes.xaxis.label.set_x(0.2)  # under the bars
        head = "USD per 1,000 right"
        axes.annotate(
            head, (192, -0.75), va="center", fontsize=9, annotation_clip=False
        )
        for row, name in enumerate(named):
            if name in dollars:
                told = _dollars(*dollars[name])
                axes.annotate(told, (192, row), va="center", fontsize=9)
    axes.spines["bottom"].set_bounds(0, 100)
    axes.set_xticks(range(0, 101, 20))
    return axes


def _dollars(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "none right"
    most = "any" if high is None or not math.isfinite(high) else f"{high:.3f}"
    return f"{value:.3f} ({low:.3f} to {most})"
