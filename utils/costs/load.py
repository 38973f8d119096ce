"""How busy machines may be while their answers come in time, and what an answer costs.

Utilisation is never typed in. It follows from how long answers take, how many machines
share one queue, and what was promised. The model is the queue M/G/c: calls come by
chance (Poisson) and wait in one line for c servers. How many wait is Erlang's formula
(1917), how long is Allen and Cunneen's (1990), and the wait's tail is taken to be
exponential. For exponential service times all three are exact; the tests compare others
with a simulation.
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.costs.prices import MONTH

MANY = 500  # servers; at one load more wait still less, which is left out
ROUNDING = 1e-9  # makes nobody late


@dataclass(frozen=True)
class Promise:
    """Half of the answers come within `median` seconds, 95 of 100 within `p95`."""

    median: float
    p95: float


@dataclass(frozen=True)
class Capacity:
    """What machines do under a load, and what an answer costs then."""

    machines: int
    load: float  # share of the servers that is busy at the peak, 0 to 1
    utilisation: float  # the same over the month: load / (peak over mean)
    median: float  # seconds from the call to the answer, at the peak
    p95: float
    answers_per_second: float  # at the peak
    answers_a_month: float
    usd_a_month: float  # all machines, on all month
    usd_per_answer: float  # infinite where the promise leaves no load


def times_like(mean: float, spread: float, n: int = 200) -> NDArray[np.float64]:
    """Service times in seconds, where only their mean and standard deviation are known.

    The n quantiles of a log-normal distribution, scaled to that mean.
    """
    sigma = math.sqrt(math.log(1 + (spread / mean) ** 2))
    times = np.exp(sigma * np.array(normal_quantiles(n)))
    return times * mean / times.mean()


@functools.cache
def normal_quantiles(n: int = 200) -> list[float]:
    """Return n quantiles of the normal distribution, in the middle of equal shares."""
    return [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]


def erlang_c(load: float, servers: int) -> float:
    """Share of the calls that wait, where `load` (0 to below 1) of M/M/c is busy."""
    servers = min(servers, MANY)
    busy = load * servers
    blocked = 1.0  # Erlang B, by its recursion, which no factorial overflows
    for n in range(1, servers + 1):
        blocked = busy * blocked / (n + busy * blocked)
    return blocked / (1 - load * (1 - blocked))


def share_later(seconds: ArrayLike, servers: int, load: float, than: float) -> float:
    """Share of the answers that take longer than `than` seconds, waiting included.

    `seconds` are measured service times; `load` is the busy share, 0 to below 1.
    """
    times = _checked(seconds)
    if not 0 <= load < 1 or servers < 1:
        raise ValueError(f"want a load of 0 to below 1 and a server: {load}, {servers}")
    late = times > than
    if load == 0:  # nobody waits
        return float(late.mean())
    mean = times.sum() / len(times)
    variability = times @ times / len(times) / mean**2 / 2
    usual_wait = variability * mean / (servers * (1 - load))  # of those who wait
    left = np.maximum(than - times, 0)  # what a wait may take
    still_waiting = erlang_c(load, servers) * np.exp(-left / usual_wait)
    return float(np.where(late, 1.0, still_waiting).sum() / len(times))


def quantile(seconds: ArrayLike, servers: int, load: float, share: float) -> float:
    """Seconds within which `share` of the answers come."""
    low, high = 0.0, float(np.max(seconds))
    while share_later(seconds, servers, load, high) > 1 - share:
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        late = share_later(seconds, servers, load, middle) > 1 - share
        low, high = (middle, high) if late else (low, middle)
    return high


def keeps(seconds: ArrayLike, servers: int, load: float, promise: Promise) -> bool:
    """Say whether the promise is kept at a load."""
    return (
        share_later(seconds, servers, load, promise.median) <= 0.5 + ROUNDING
        and share_later(seconds, servers, load, promise.p95) <= 0.05 + ROUNDING
    )


def highest_load(seconds: ArrayLike, servers: int, promise: Promise) -> float:
    """Highest load, as a share of the servers' capacity, that keeps the promise.

    0 where even an answer that waits for nobody comes too late.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        kept = keeps(seconds, servers, middle, promise)
        low, high = (middle, high) if kept else (low, middle)
    return low if low > 1e-5 else 0.0


def at_promise(
    seconds: ArrayLike,
    machines: int,
    promise: Promise,
    usd_per_hour: float,
    peak: float = 1.0,
    slots: int = 1,
) -> Capacity:
    """Find what machines carry at the highest load that keeps the promise.

    `slots` answers run on a machine at a time, each in `seconds`. `peak` is the busiest
    hour's rate over the mean: machines for the peak are paid all month.
    """
    servers = machines * slots
    load = highest_load(seconds, servers, promise)
    rate = load * servers / float(np.mean(seconds))
    per_month = rate / peak * MONTH
    usd = machines * usd_per_hour * MONTH / 3600
    return Capacity(
        machines=machines,
        load=load,
        utilisation=load / peak,
        median=quantile(seconds, servers, load, 0.5),
        p95=quantile(seconds, servers, load, 0.95),
        answers_per_second=rate,
        answers_a_month=per_month,
        usd_a_month=usd,
        usd_per_answer=usd / per_month if per_month else math.inf,
    )


def machines_for(
    seconds: ArrayLike,
    per_month: float,
    promise: Promise,
    peak: float = 1.0,
    slots: int = 1,
) -> int:
    """Find the fewest machines that answer `per_month` calls in time at the peak.

    Raises ValueError where no number of machines keeps the promise.
    """
    times = _checked(seconds)
    if not keeps(times, 1, 0.0, promise):
        raise ValueError(
            "no number of machines keeps the promise: an answer takes "
            f"{np.median(times):.2f} s at the median, {np.quantile(times, 0.95):.2f} s "
            "at the 95th percentile, without any wait"
        )
    busy = per_month * peak / MONTH * times.mean()  # servers at work at the peak

    def enough(machines: int) -> bool:
        load = busy / (machines * slots)
        return load < 1 and keeps(times, machines * slots, load, promise)

    most = max(1, math.ceil(busy / slots))
    least = most - 1  # too few: they would be busier than always
    while not enough(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most


def _checked(seconds: ArrayLike) -> NDArray[np.float64]:
    times = np.asarray(seconds, float).ravel()
    if not (len(times) and times.min() > 0 and times.max() < math.inf):
        raise ValueError("service times are seconds above 0, at least one")
    return times
