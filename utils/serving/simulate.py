"""Sandboxes by the thousand, simulated: how long, how many at a time, what it costs.

A discrete-event simulation: each call goes to the sandbox that is free first, which is
created for it if need be, no sooner than the limits allow: so many created a second, so
many at a time, and of these so many that are still starting.

    naive = Policy("one a job", sandboxes=100, one_per_job=True, creates_per_second=5)
    simulate(naive, Work(job=fixed(0.001), start=fixed(2.0)), jobs=1_000).seconds
"""

import bisect
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Draws so many times, in seconds.
Times = Callable[[np.random.Generator, int], NDArray[np.float64]]


def fixed(seconds: float) -> Times:
    """Every time is the same."""
    return measured([seconds])


def measured(samples: ArrayLike) -> Times:
    """Draw from a sample of seconds, with replacement."""
    values = np.asarray(samples, dtype=float).ravel()
    return lambda rng, n: rng.choice(values, n)


def stragglers(
    usual: tuple[float, float], late: tuple[float, float], share: float = 0.01
) -> Times:
    """Draw evenly from `usual` (least, most), and a `share` of them from `late`."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        is_late = rng.random(n) < share
        return np.where(is_late, rng.uniform(*late, n), rng.uniform(*usual, n))

    return draw


NO_TIME = fixed(0.0)


@dataclass(frozen=True)
class Work:
    """What takes time, in seconds: a job, a sandbox's start, what a call adds."""

    job: Times
    start: Times = NO_TIME
    call: Times = NO_TIME


@dataclass(frozen=True)
class Policy:
    """How jobs are spread over sandboxes."""

    name: str  # for tables and figures
    sandboxes: int  # at a time, at most: the pool's size, or the plan's limit
    one_per_job: bool = False  # a new sandbox for each call; else each is kept
    batch: int = 1  # jobs in a call
    workers: int = 1  # of a sandbox, which share the jobs of its call
    creates_per_second: float = math.inf
    starting: float = math.inf  # sandboxes at a time that are created and not yet ready
    usd_per_second: float = 0.0  # of one sandbox, from its creation to its end


@dataclass(frozen=True)
class SimulationResult:
    """What a simulated run took; times in seconds."""

    seconds: float
    sandbox_seconds: float  # paid: from creation to end, idle time included
    dollars: float  # price of the sandboxes, in USD
    created: int  # sandboxes
    peak: int  # most sandboxes at a time
    finished: NDArray[np.float64]  # the end of each job, in the order of arrival


def simulate(
    policy: Policy,
    work: Work,
    jobs: int,
    seed: int = 0,
    arrivals: Sequence[float] | None = None,
) -> SimulationResult:
    """Simulate `jobs` jobs, all there at the start or at the seconds of `arrivals`.

    The answers of a call come together at its end, as from `ModalPool`. A sandbox that
    is kept is paid until the last job is done. Arrivals are in order, one a job.
    """
    # Another stream than that of default_rng(seed), which may have drawn the arrivals.
    rng = np.random.default_rng((seed, 1))
    calls = math.ceil(jobs / policy.batch)
    places = min(policy.sandboxes, calls)
    lengths = _call_seconds(work.job(rng, jobs), policy) + work.call(rng, calls)
    starts = iter(work.start(rng, calls if policy.one_per_job else places))
    # A call can leave when its last job is there.
    last = np.minimum(np.arange(1, calls + 1) * policy.batch, jobs) - 1
    ready = np.zeros(calls) if arrivals is None else np.asarray(arrivals, float)[last]

    free = [(0.0, False)] * places  # when a place is free, and whether it has a sandbox
    next_creation = 0.0
    waking: list[float] = []  # when those that hold a permit to start are ready
    ended = np.zeros(calls)
    births: list[float] = []
    for number in range(calls):
        since, alive = free[0]  # the place that is free first
        now = max(since, ready[number])
        if not alive:
            birth = max(now, next_creation)
            if len(waking) == policy.starting:  # the first that is ready hands it on
                birth = max(birth, heapq.heappop(waking))
            next_creation = birth + 1 / policy.creates_per_second
            births.append(birth)
            now = birth + next(starts)
            heapq.heappush(waking, now)
        ended[number] = now + lengths[number]
        heapq.heapreplace(free, (ended[number], not policy.one_per_job))

    deaths = ended if policy.one_per_job else np.full(len(births), ended.max())
    sandbox_seconds = float(np.sum(deaths) - np.sum(births))
    return SimulationResult(
        seconds=float(ended.max()),
        sandbox_seconds=sandbox_seconds,
        dollars=sandbox_seconds * policy.usd_per_second,
        created=len(births),
        peak=_peak(births, deaths),
        finished=np.repeat(ended, np.diff(last, prepend=-1)),
    )


def _call_seconds(times: NDArray[np.float64], policy: Policy) -> NDArray[np.float64]:
    """How long each call's jobs take when each worker takes the next as it is free."""
    spans = []
    for first in range(0, len(times), policy.batch):
        free = [0.0] * policy.workers
        for one in times[first : first + policy.batch]:
            heapq.heapreplace(free, free[0] + one)
        spans.append(max(free))
    return np.array(spans)


def _peak(births: Sequence[float], deaths: Sequence[float]) -> int:
    """Most sandboxes alive at a time; one that ends makes room for one that begins."""
    changes = sorted([(t, 1) for t in births] + [(t, -1) for t in deaths])
    return int(np.cumsum([change for _, change in changes]).max())


def asynchronous(
    rollout: Times, size: int, learn: float, steps: int, seed: int = 0
) -> tuple[float, list[int]]:
    """Simulate a trainer that learns from the `size` rollouts that end first.

    `size` rollouts always run, a step takes `learn` seconds. Returns the seconds that
    the trainer waits in all `steps`, and the staleness of each rollout it took: how
    many steps the model has moved on since it began.
    """
    seconds = iter(rollout(np.random.default_rng(seed), size * (steps + 1)))
    running = [(next(seconds), 0) for _ in range(size)]  # its end, the model's version
    heapq.heapify(running)
    now, idle = 0.0, 0.0
    updates: list[float] = []  # when each new version was there
    stale = []
    for version in range(steps):
        asked = now
        for _ in range(size):
            end, born = running[0]  # the first to end; another one begins at once
            newest = bisect.bisect_right(updates, end)
            heapq.heapreplace(running, (end + next(seconds), newest))
            now = max(now, end)
            stale.append(version - born)
        idle += now - asked
        now += learn
        updates.append(now)
    return idle, stale
