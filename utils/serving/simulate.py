"""Sandboxes by the thousand, simulated: how long, how many at a time, what it costs.

A discrete-event simulation on simpy. Jobs go to sandboxes in calls, and each sandbox
works like a place in `SandboxPool` or `ModalPool`: it takes a call, then creates its
sandbox if it has none, no sooner than the creation limit allows, and answers.

    naive = Policy("fresh", sandboxes=100, fresh=True, creates_per_second=5)
    simulate(naive, Work(job=fixed(0.001), start=fixed(2.0)), jobs=1_000).seconds

`train` asks what a training costs that waits for its slowest rollout.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import simpy
from numpy.typing import ArrayLike, NDArray

# Draws so many times, in seconds.
Times = Callable[[np.random.Generator, int], NDArray[np.float64]]


def fixed(seconds: float) -> Times:
    """Every time is the same."""
    return measured([seconds])


def exponential(mean: float) -> Times:
    """Draw times without memory, as the closed forms of queues assume them."""
    _positive(mean=mean)
    return lambda rng, n: rng.exponential(mean, n)


def measured(samples: ArrayLike) -> Times:
    """Draw from a sample of seconds, with replacement."""
    values = np.asarray(samples, dtype=float).ravel()
    if not len(values) or not (values >= 0).all() or not np.isfinite(values).all():
        raise ValueError("measured() needs seconds: at least one, finite, none below 0")
    return lambda rng, n: rng.choice(values, n)


def stragglers(
    usual: tuple[float, float], late: tuple[float, float], share: float = 0.01
) -> Times:
    """Draw between the two of `usual`, and a `share` of them between those of `late`.

    Each pair is (least, most), and between them all times are as likely. Raises
    ValueError unless 0 <= usual[0] <= usual[1] <= late[0] <= late[1].
    """
    if list((0, *usual, *late)) != sorted((0, *usual, *late)) or not 0 <= share <= 1:
        raise ValueError("want 0 <= usual <= late, each (least, most), and a share")

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
    """How jobs are spread over sandboxes.

    Args:
        name: for tables and figures.
        sandboxes: at a time, at most: the pool's size, or the plan's limit.
        fresh: a new sandbox for each call; else each is kept and used again.
        batch: jobs in a call.
        workers: of a sandbox, which share the jobs of its call.
        creates_per_second: sandboxes created a second, at most.
        burst: so many may be created at once before that limit bites.
        usd_per_second: price of one sandbox, from its creation to its end.

    """

    name: str
    sandboxes: int
    fresh: bool = False
    batch: int = 1
    workers: int = 1
    creates_per_second: float = math.inf
    burst: int = 1
    usd_per_second: float = 0.0

    def __post_init__(self) -> None:
        _positive(
            sandboxes=self.sandboxes,
            batch=self.batch,
            workers=self.workers,
            creates_per_second=self.creates_per_second,
            burst=self.burst,
        )
        if self.usd_per_second < 0:
            raise ValueError(f"a price is not negative: {self.usd_per_second}")


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took; times in seconds.

    `finished` has the end of each job, in the order of arrival; `waited` how long each
    call was ready and not yet worked on; `creation` how long each sandbox took, from
    being wanted to being ready, its turn at the creation limit included.
    """

    policy: Policy
    seconds: float
    sandbox_seconds: float  # paid: from creation to end, idle time included
    busy_seconds: float  # of these, spent in calls
    peak: int  # most sandboxes at a time
    finished: NDArray[np.float64]
    waited: NDArray[np.float64]
    creation: NDArray[np.float64]

    @property
    def dollars(self) -> float:
        """The sandboxes' price, in USD."""
        return self.sandbox_seconds * self.policy.usd_per_second

    @property
    def utilisation(self) -> float:
        """Share of the paid time that was spent in calls, 0 to 1."""
        return self.busy_seconds / self.sandbox_seconds if self.sandbox_seconds else 1.0

    @property
    def created(self) -> int:
        """The number of sandboxes created."""
        return len(self.creation)

    def finish(self, *percent: float) -> list[float]:
        """Seconds after which such shares of the jobs, in per cent, were done."""
        return np.percentile(self.finished, percent).tolist()


def simulate(
    policy: Policy,
    work: Work,
    jobs: int,
    seed: int = 0,
    arrivals: Sequence[float] | None = None,
) -> Outcome:
    """Simulate `jobs` jobs, all there at the start or at the seconds of `arrivals`.

    The answers of a call come together at its end, as from `ModalPool`. A sandbox that
    is kept is paid until the last job is done. Raises ValueError for no job, or for
    arrivals that are not one for each job and in order.
    """
    _positive(jobs=jobs)
    # Another stream than that of default_rng(seed), which may have drawn the arrivals.
    rng, env = np.random.default_rng((seed, 1)), simpy.Environment()
    calls = math.ceil(jobs / policy.batch)
    places = min(policy.sandboxes, calls)
    lengths = _spans(work.job(rng, jobs), policy.batch, policy.workers)
    lengths = lengths + work.call(rng, calls)
    starts = iter(work.start(rng, calls if policy.fresh else places))
    # A call can leave when its last job is there.
    last = np.minimum(np.arange(1, calls + 1) * policy.batch, jobs) - 1
    ready = np.zeros(calls) if arrivals is None else _ordered(arrivals, jobs)[last]
    gate = _Gate(env, policy)
    # With arrivals, the next call, if it is there; without, nobody has to wait for any.
    queue, todo = simpy.Store(env, capacity=1), iter(range(calls))
    ended, begun = np.zeros(calls), np.zeros(calls)
    births, deaths, creation = [], [], []

    def source() -> Iterator[simpy.Event]:
        for number in todo:
            if ready[number] > env.now:
                yield env.timeout(ready[number] - env.now)
            yield queue.put(number)
        for _ in range(places):
            yield queue.put(None)

    def place() -> Iterator[simpy.Event]:
        alive = False
        while True:
            number = next(todo, None) if arrivals is None else (yield queue.get())
            if number is None:
                return
            begun[number] = env.now
            if not alive:
                pause, start = gate.pause(), next(starts)
                births.append(env.now + pause)
                creation.append(pause + start)
                begun[number] += pause + start
                alive = not policy.fresh
            yield env.timeout(begun[number] + lengths[number] - env.now)
            ended[number] = env.now
            if policy.fresh:
                deaths.append(env.now)

    if arrivals is not None:
        env.process(source())
    for _ in range(places):
        env.process(place())
    env.run()
    deaths = deaths if policy.fresh else [ended.max()] * len(births)
    return Outcome(
        policy=policy,
        seconds=float(ended.max()),
        sandbox_seconds=float(np.sum(deaths) - np.sum(births)),
        busy_seconds=float(lengths.sum()),
        peak=_peak(births, deaths),
        finished=np.repeat(ended, np.diff(last, prepend=-1)),
        waited=begun - ready,
        creation=np.array(creation),
    )


class _Gate:
    """The creation limit, a token bucket: who asks is told how long to wait."""

    def __init__(self, env: simpy.Environment, policy: Policy) -> None:
        self.env, self.step = env, 1 / policy.creates_per_second
        self.slack = (policy.burst - 1) * self.step
        self.next = 0.0  # when the bucket would have a token if nobody had saved any

    def pause(self) -> float:
        """Take the next turn; return the seconds until it comes."""
        turn = max(self.next, self.env.now)
        self.next = turn + self.step
        return max(0.0, turn - self.slack - self.env.now)


def _spans(times: NDArray[np.float64], batch: int, workers: int) -> NDArray[np.float64]:
    """How long each call's jobs take when each worker takes the next as it is free."""
    edges = np.arange(0, len(times), batch)
    if workers == 1 or batch == 1:
        return np.add.reduceat(times, edges)
    spans = []
    for edge in edges:
        free = [0.0] * workers
        for one in times[edge : edge + batch]:
            heapq.heapreplace(free, free[0] + one)
        spans.append(max(free))
    return np.array(spans)


def _peak(births: Sequence[float], deaths: Sequence[float]) -> int:
    changes = sorted([(t, 1) for t in births] + [(t, -1) for t in deaths])
    return int(np.cumsum([change for _, change in changes]).max())


def _ordered(arrivals: Sequence[float], jobs: int) -> NDArray[np.float64]:
    times = np.asarray(arrivals, dtype=float)
    if times.shape != (jobs,) or (np.diff(times, prepend=0.0) < 0).any():
        raise ValueError(f"need {jobs} arrivals, in order and from second 0 on")
    return times


def erlang_c(rate: float, mean: float, servers: int) -> tuple[float, float]:
    """Solve the queue M/M/c: (share that waits, mean wait in seconds).

    The closed form for `rate` arrivals a second and a `mean` service time, both without
    memory (Erlang 1917). Raises ValueError where the queue would grow for ever.
    """
    _positive(rate=rate, mean=mean, servers=servers)
    load = rate * mean
    if load >= servers:
        raise ValueError(f"{load:g} busy servers are needed, there are {servers}")
    blocked = 1.0  # Erlang B, by its recursion, which no factorial overflows
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    waits = blocked / (1 - load / servers * (1 - blocked))
    return waits, waits * mean / (servers - load)


@dataclass(frozen=True)
class Training:
    """What a simulated training took; times in seconds.

    `staleness` has, for each rollout that was learned from, how many steps the model
    had moved on since the rollout began. The time of sandboxes is in none of them, nor
    is that of the rollouts that were `dropped`.
    """

    steps: int
    seconds: float
    idle_seconds: float  # of these, the trainer's GPU waited
    staleness: NDArray[np.int_]
    dropped: int  # rollouts begun, and given up

    @property
    def idle(self) -> float:
        """Share of the time that the trainer's GPU waited, 0 to 1."""
        return self.idle_seconds / self.seconds


def train(
    steps: int,
    rollouts: int,
    rollout: Times,
    learn: float,
    spare: int = 0,
    ahead: float | None = None,
    seed: int = 0,
) -> Training:
    """Simulate a training whose steps each learn from `rollouts` rollouts.

    Synchronous, if `ahead` is None: each step begins `rollouts` + `spare` of them,
    takes those that end first and gives up the others; with no spare it waits for all.

    Asynchronous: as many rollouts as a step takes are always running, with whatever
    model is newest when they begin, and the trainer takes those that end first. At most
    (1 + `ahead`) x `rollouts` are begun and not yet learned from. That bounds how many
    are ahead, not how old one gets: a straggler can be several steps old when it is
    learned from, see `Training.staleness`. `learn` is the seconds of one step's
    learning.
    """
    _positive(steps=steps, rollouts=rollouts, learn=learn)
    if spare < 0 or (ahead is not None and (ahead < 0 or spare)):
        raise ValueError("spare and ahead are not negative, and only one is given")
    rng, env = np.random.default_rng(seed), simpy.Environment()
    done = simpy.Store(env)
    room = simpy.Container(env, init=round((1 + (ahead or 0)) * rollouts))
    version, idle, dropped, staleness = 0, 0.0, 0, []

    def play(seconds: float) -> Iterator[simpy.Event]:
        born = version
        try:
            yield env.timeout(seconds)
        except simpy.Interrupt:
            return
        done.put(born)  # has room always, so there is nothing to wait for

    def lane() -> Iterator[simpy.Event]:
        while True:
            yield room.get(1)
            yield from play(float(rollout(rng, 1)[0]))

    def trainer() -> Iterator[simpy.Event]:
        nonlocal version, idle, dropped
        for _ in range(steps):
            asked, running = env.now, []
            if ahead is None:
                times = rollout(rng, rollouts + spare)
                running = [env.process(play(float(t))) for t in times]
            for _ in range(rollouts):
                staleness.append(version - (yield done.get()))
            for late in running:
                if late.is_alive:
                    late.interrupt()
                    dropped += 1
            idle += env.now - asked
            if ahead is None:  # some may have ended as the last one taken did
                dropped += len(done.items)
                done.items.clear()
            else:
                yield room.put(rollouts)
            yield env.timeout(learn)
            version += 1

    if ahead is not None:
        for _ in range(rollouts):
            env.process(lane())
    env.run(until=env.process(trainer()))
    return Training(steps, env.now, idle, np.array(staleness), dropped)


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be above 0, not {number}")
