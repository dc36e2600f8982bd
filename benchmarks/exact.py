"""Exact EM beside dedicated software: seconds per iteration, seconds to the optimum, memory.

All sides start at equal values, take equally many EM iterations in double precision without
priors, in one process and in turn; the log-likelihoods that they reach are printed. Compilation
and set-up are never in the seconds per iteration. Peers come with `pip install -e ".[bench]"`;
those that are not installed are left out. Run it with `python benchmarks/exact.py`, or
`python benchmarks/exact.py --quick` to see within a few minutes that all of it works.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import numpyro
from exact_models import CASES, Case, Instance
from exact_peers import MODULES, PEERS, Run, version

import ppl_em
from ppl_em import EM, Stopping

OURS = "ppl_em"
NATS = 1e-6
"""Distance from the best known log-likelihood at which the optimum counts as reached."""


LONG = 10.0
"""Seconds from which a run to the optimum is not repeated."""


class Timing(NamedTuple):
    """Seconds per iteration, seconds of the first run, log-likelihood after the iterations."""

    seconds: float
    first: float
    log_likelihood: float


class Ours:
    """ppl_em as a `run`: iterations to log-likelihoods after each, and seconds of each.

    With a positive `gap` it stops by itself, and may end in Newton steps as it does for users.
    """

    def __init__(self, instance: Instance, max_seconds: float, gap: float = 0.0):
        self.instance, self.max_seconds, self.gap = instance, max_seconds, gap
        self.fixed = {name: instance.start[name] for name in instance.fixed}
        self.seconds: list[float] = []

    def __call__(self, count: int) -> np.ndarray:
        """Fit by `count` iterations at most."""
        stopping = Stopping(gap=self.gap, max_seconds=self.max_seconds)
        em = EM(
            self.instance.model,
            e_step="exact",
            fixed=self.fixed,
            max_steps=count,
            stopping=stopping,
        )
        result = em.run(jax.random.key(0), *self.instance.args, progress_bar=False)
        self.seconds = list(result.history["seconds"])
        return result.history["objective"]


def clock(function: Callable, *args) -> tuple[float, np.ndarray]:
    """Seconds of a call, and what it returns."""
    start = time.perf_counter()
    value = function(*args)
    return time.perf_counter() - start, value


# --- Seconds per iteration


def per_iteration(ours: Ours | None, peers: dict[str, Run], count: int, repeats: int) -> dict:
    """Time all sides in turn, `repeats` times; medians."""
    runs = {**({OURS: ours} if ours else {}), **peers}
    first, reached, times = {}, {}, {name: [] for name in runs}
    for name, run in list(runs.items()):
        try:
            # A peer's log-likelihoods belong to the parameters before each iteration.
            first[name], trace = clock(run, count if name == OURS else count + 1)
        except Exception as error:
            print(f"  {name}: {_line(error)}", flush=True)
            del runs[name]
            continue
        if len(trace) < count:
            print(f"  {name}: stopped after {len(trace)} of {count} iterations")
        reached[name] = float(trace[-1])
    for _ in range(repeats):
        for name, run in runs.items():
            if name == OURS:
                run(count)
                times[name].append(statistics.median(ours.seconds))
            else:
                short, long = clock(run, 1)[0], clock(run, 1 + count)[0]
                times[name].append((long - short) / count)
    return {
        name: Timing(statistics.median(times[name]), first[name], reached[name]) for name in runs
    }


def report_iterations(name: str, case: Case, size: int, peers: dict[str, Run], args) -> None:
    """Print one block of the first table."""
    instance = case.make(size)
    made = {peer: make(instance) for peer, make in peers.items()}
    ours = None if args.no_ours else Ours(instance, args.max_seconds)
    timings = per_iteration(ours, made, args.iterations, args.repeats)
    print(f"\n{name}, {size} {case.unit}, {args.iterations} iterations, {args.repeats} repetitions")
    print(f"  {'':14}{'s/iteration':>12}{'ours/theirs':>12}{'first run s':>12}  log-likelihood")
    mine = timings.get(OURS)
    for side, timing in timings.items():
        other = mine is not None and side != OURS
        ratio = f"{mine.seconds / timing.seconds:.2f}" if other else ""
        line = f"  {side:14}{timing.seconds:12.5f}{ratio:>12}{timing.first:12.2f}"
        line += f"  {timing.log_likelihood:.6f}"
        if other:
            away = abs(mine.log_likelihood / timing.log_likelihood - 1)
            line += f"  ({away:.0e} relative{'' if away < 1e-6 else ', NOT EQUAL'})"
        print(line, flush=True)


def report_linearity(name: str, case: Case, size: int, args) -> None:
    """Print how seconds per iteration grow from a tenth of the size to the size."""
    timings = []
    for number in (size // 10, size):
        made = per_iteration(
            Ours(case.make(number), args.max_seconds), {}, args.iterations, args.repeats
        )
        if OURS not in made:
            return
        timings.append(made[OURS].seconds)
    growth = timings[1] / timings[0] / 10
    print(f"\n{name}, {size // 10} and {size} {case.unit}: {timings[0]:.5f} and {timings[1]:.5f}")
    print(f"  s/iteration, {growth:.2f} of linear growth", flush=True)


# --- Seconds to the optimum


def report_optimum(name: str, case: Case, size: int, peers: dict[str, Run], args) -> None:
    """Print iterations and seconds until `NATS` below the best log-likelihood of any side.

    Seconds are those of a whole run, set-up included but nothing compiled; medians, except of runs
    that take longer than `LONG` seconds.
    """
    instance = (case.make_optimum or case.make)(size)
    ours = Ours(instance, args.max_seconds, NATS / 10)
    runs: dict[str, Run] = {} if args.no_ours else {OURS: ours}
    runs |= {peer: make(instance) for peer, make in peers.items()}
    traces, spent = {}, {}
    for side, run in runs.items():
        try:
            run(case.budget if side == OURS else 1)
            spent[side], traces[side] = clock(run, case.budget)
        except Exception as error:
            print(f"  {side}: {_line(error)}", flush=True)
    if not traces:
        return
    best = max(np.max(trace) for trace in traces.values())
    print(f"\n{name} to the optimum, {size} {case.unit}: best log-likelihood {best:.8f}")
    print(f"  {'':14}{'iterations':>12}{'seconds':>12}{'to 1e-6 relative':>18}")
    for side, trace in traces.items():
        after = np.arange(len(trace)) + (side == OURS)  # iterations behind each value
        near = after[trace >= best - 1e-6 * abs(best)]
        rough = f"{near[0]:18d}" if len(near) else f"{'no':>18}"
        reached = after[trace >= best - NATS]
        if not len(reached):
            left = f"{best - trace[-1]:.1e} left after {spent[side]:.1f} s"
            print(f"  {side:14}{'no':>12}  {left}{rough}", flush=True)
            continue
        count = max(int(reached[0]), 1)
        repeats = args.repeats if spent[side] * count / len(trace) < LONG else 1
        seconds = statistics.median(clock(runs[side], count)[0] for _ in range(repeats))
        print(f"  {side:14}{count:12d}{seconds:12.4f}{rough}", flush=True)


# --- Memory


def report_memory(name: str, case: Case, size: int, sides: list[str], args) -> None:
    """Print the peak memory of each side, in a process of its own."""
    if not sides:
        return
    print(f"\n{name}, {size} {case.unit}: peak memory of a process that fits 3 iterations")
    for side in sides:
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name, side, str(size)]
        done = subprocess.run(command, capture_output=True, text=True)
        last = (done.stdout or done.stderr).strip().splitlines()[-1:]
        print(f"  {side:14}{last[0] if last else 'no answer':>12}", flush=True)


def child(name: str, side: str, size: int) -> None:
    """Fit 3 iterations and print the peak memory of this process."""
    instance = CASES[name].make(size)
    run = Ours(instance, np.inf) if side == OURS else PEERS[name][side](instance)
    run(3)
    print(f"{peak_gib():.2f} GiB")


def peak_gib() -> float:
    """Peak resident memory of this process.

    Linux counts that of the parent before it into a child's `ru_maxrss`, but not into `VmHWM`.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


# --- The whole


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def report_machine() -> None:
    """Print what ran where."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"Python {platform.python_version()}, {platform.machine()}, {cores} cores")
    ours = f"ppl_em {ppl_em.__version__}, " if hasattr(ppl_em, "__version__") else ""
    print(f"{ours}jax {jax.__version__}, numpyro {numpyro.__version__}, numpy {np.__version__}")
    for peer in MODULES:
        print(f"{peer} {version(peer) or 'is not installed: left out. pip install -e .[bench]'}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, two repetitions")
    parser.add_argument("--only", choices=CASES, action="append", help="this problem; repeatable")
    parser.add_argument("--parts", default="iterations,optimum,memory", help="comma-separated")
    parser.add_argument("--size", type=int, help="instead of every problem's own sizes")
    parser.add_argument("--iterations", type=int, default=5, help="EM iterations that are timed")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions, of which the median")
    parser.add_argument("--max-seconds", type=float, default=600.0, help="per fit of ppl_em")
    parser.add_argument("--no-ours", action="store_true", help="time the peers alone")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.repeats = 2 if args.quick else args.repeats
    return args


def main() -> None:
    """Print every table that was asked for."""
    numpyro.enable_x64()
    args = parse()
    if args.child:
        child(args.child[0], args.child[1], int(args.child[2]))
        return
    report_machine()
    parts = args.parts.split(",")
    for name in args.only or CASES:
        case = CASES[name]
        peers = {peer: make for peer, make in PEERS[name].items() if version(peer)}
        timed, optimum = (case.quick,) * 2 if args.quick else (case.timed, case.optimum)
        timed, optimum = args.size or timed, args.size or optimum
        if "iterations" in parts and name == "slopes":
            if not args.no_ours:
                report_linearity(name, case, timed, args)
        elif "iterations" in parts:
            report_iterations(name, case, timed, peers, args)
        if "optimum" in parts and peers:
            report_optimum(name, case, optimum, peers, args)
        if "memory" in parts:
            report_memory(name, case, timed, [OURS] * (not args.no_ours) + list(peers), args)


if __name__ == "__main__":
    main()
