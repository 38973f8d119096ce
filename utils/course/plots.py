"""One look for every figure: readable in grey, intervals drawn, units on the axes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from pandas.io.formats.style import Styler

STYLE = Path(__file__).resolve().with_name("course.mplstyle")
# Dark to light, as in the style file.
COLOURS = ("#1b3a4b", "#b5541c", "#4f8a8b", "#c9a227", "#8d99ae")
INK, FAINT = "#222222", "#d9d9d9"


def figure(question: str, rows: int = 1, columns: int = 1, **settings: Any) -> Any:
    """Open a figure in the course's style, its title a question.

    Returns the axes: one, or an array of `rows` x `columns`.
    """
    plt.style.use(STYLE)
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
    rows = [(one.value, one.low, one.high) for one in intervals.values()]
    value, low, high = scale * np.array(rows, dtype=float).T
    dark = [not highlight or name in highlight for name in names]
    axes.barh(
        range(len(names)),
        value,
        color=[COLOURS[0] if each else COLOURS[4] for each in dark],
        xerr=[np.maximum(0, value - low), np.maximum(0, high - value)],
        error_kw={"ecolor": COLOURS[1], "elinewidth": 1.6, "capsize": 3},
        height=0.62,
    )
    end = np.maximum(value, high)
    for row in range(len(names)):
        text = f"{value[row]:,.{digits}f}"
        axes.annotate(
            text, (end[row], row), (5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, end.max() * 1.2 or 1)
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first on top, in shared axes too
    if scale == 100:
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)


def losses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the training and the validation loss of a log over its steps."""
    for key, label, mark in (
        ("loss", "training", None),
        ("eval_loss", "validation", "o"),
    ):
        found = [(row["step"], row[key]) for row in rows if key in row]
        if found:
            axes.plot(*zip(*found, strict=True), label=label, marker=mark)
    axes.set_xlabel("training steps")
    axes.set_ylabel("loss, nats a token")
    axes.set_yscale("log")
    axes.legend()


def differences(axes: Axes, intervals: Mapping[str, Any], unit: str) -> None:
    """Draw paired differences, in points: one a row, its interval, and a line at 0."""
    for row, one in enumerate(intervals.values()):
        axes.plot([100 * one.low, 100 * one.high], [row, row], "-", color=INK)
        axes.plot(100 * one.value, row, "o", color=COLOURS[1])
        axes.text(100 * one.value, row - 0.2, f"{100 * one.value:+.1f}", fontsize=9)
    axes.axvline(0, color="0.6", linestyle=":")
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set(ylim=(len(intervals) - 0.5, -0.7), xlabel=unit)


def mark(axes: Axes, x: float, share: Any, name: str, side: str = "left") -> None:
    """Mark a share (value, low and high, drawn in %) with its interval and its name."""
    value, low, high = 100 * share.value, 100 * share.low, 100 * share.high
    axes.plot([x, x], [low, high], "-", color=COLOURS[1])
    axes.plot(x, value, "o", color=COLOURS[1])
    away = (8 if side == "left" else -8, -4)
    where = {"textcoords": "offset points", "va": "top", "ha": side, "fontsize": 9}
    axes.annotate(f"{name}\n{value:.1f} %", (x, value), away, **where)


def tornado(
    axes: Axes,
    swings: Mapping[str, tuple[float, float]],
    centre: float,
    write: Callable[[float], str],
) -> None:
    """Draw what each knob does to a number, a bar a knob, on a logarithmic axis.

    Both ends of a bar carry their values, written by `write`; an infinite one reaches
    to the edge.
    """
    known = [x for ends in [*swings.values(), (centre,)] for x in ends if x < np.inf]
    known = known or [1.0]
    left, edge = min(known) / 6, 6 * max(known)  # room for the values
    for row, ends in enumerate(swings.values()):
        low, high = sorted(min(end, edge) for end in ends)
        axes.barh(row, high - low, left=low, color=COLOURS[4], height=0.5)
        for end, side, away in ((min(ends), "right", -4), (max(ends), "left", 4)):
            inside = end > edge  # never: the value stands in the bar's end
            axes.annotate(
                write(end),
                (min(end, edge), row),
                (-4 if inside else away, 0),
                textcoords="offset points",
                ha="right" if inside else side,
                va="center",
                fontsize=8,
            )
    if centre < np.inf:
        axes.axvline(centre, color=COLOURS[1], linestyle="-", linewidth=1.2)
        axes.set_title(f"{write(centre)}", loc="right", fontsize=9, color=COLOURS[1])
    axes.set_xscale("log")
    axes.set_xlim(left, edge)
    axes.set_yticks(range(len(swings)), list(swings), fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def text_table(frame: pd.DataFrame) -> Styler:
    """Show a table of texts: aligned left, lines broken, nothing cut off."""
    left = {"selector": "td, th", "props": "text-align: left; vertical-align: top"}
    return frame.style.set_table_styles([left])
