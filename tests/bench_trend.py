"""How often the trend rule is wrong, by simulation: a part of `make bench`.

Each kind of trace has a stated truth (`tests.traces`). What is counted: of what does not rise, FAILs and WARNs; of
steps, FAILs; of steady rises, FAILs at 8 % and anything else than FAIL at 12 %; of net rises by 20 %, PASSes.

All cases are counted in rounds. What is counted is kept in reports/trend-counts.jsonl: a run that was stopped
goes on from there, as long as rule and traces are the same. After each round the table of what there is goes to
reports/trend-error-rates.md. All of it takes about 25 minutes of one core.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

from nsa_lib.judgement import trend, trend_windows
from nsa_lib.judgement.trend import judge_trend
from nsa_lib.runs import environment
from tests import traces
from tests.traces import HARD, LATE, NET, RISING, STABLE, STEPPED, trace

REPORTS = environment.PROJECT / "reports"
NOISES = (0.003, 0.01, 0.05)
ROUNDS = 15
BATCH = {100: 200, 1000: 60, 20_000: 6, 200_000: 1}
"""Traces of each kind in a round, by their steps."""
NOISE_BATCH = {100: 600, 1000: 200, 20_000: 20, 200_000: 2}
"""Traces of noise alone: there are more of them, for its false alarms must be rarest."""
SIZE, SMALL, LARGE, CLIMB = 0.3, 0.08, 0.12, 0.2
"""Height of what does not rise; rises that must not fail, and that must; net rise."""
FALSE_FAIL, FALSE_WARN, WRONG = 0.1, 1.0, 1.0
"""Goals in percent: of what does not rise, and of all that is counted else."""
GROWTHS = (0.12, 0.14, 0.16, 0.18, 0.20, 0.22, 0.25, 0.28, 0.32)

SOURCE = hashlib.sha256(
    b"".join(Path(module.__file__).read_bytes() for module in (trend, trend_windows, traces))
).hexdigest()
"""Counts of another rule, or of other traces, are not gone on with."""

Case = tuple[str, float, float, int]
"""Kind, growth, noise and steps of a trace."""
KINDS = {
    **dict.fromkeys([*STABLE, *STEPPED], (SIZE,)),
    **dict.fromkeys([*RISING, *HARD], (SMALL, LARGE)),
    **dict.fromkeys(NET, (CLIMB,)),
}


HEADING = (
    "Wrong verdicts of the trend rule in percent, by noise (a fraction of the level, Gaussian, independent). "
    "Bold: above the goal. Goals: of what does not rise, FAIL 0.1 and WARN 1; of all else, 1."
)


def main() -> bool:
    """Simulate, print and keep the table; return whether what is promised of noise up to 1 % was met."""
    cases = [
        (kind, growth, noise, steps)
        for steps, noise, kind in product(BATCH, NOISES, KINDS)
        for growth in KINDS[kind]
        if steps <= 1000 or kind in STABLE | RISING
    ]
    late = [
        (kind, growth, 0.05, 1000 if int(kind.split()[1]) <= 500 else 20_000) for kind in LATE for growth in GROWTHS
    ]
    for number in range(ROUNDS):
        counts = counted([*cases, *late], number)
        text = "\n\n".join([HEADING, *(_table(steps, counts) for steps in BATCH), _late_table(late, counts)])
        (REPORTS / "trend-error-rates.md").write_text(text + "\n")
    print(text)
    promised = [case for case in cases if case[0] in STABLE | STEPPED | RISING and case[2] <= 0.01]
    return all(rate <= goal for case in promised for rate, goal in _rates(case, counts))


def counted(cases: list[Case], number: int) -> dict[Case, Counter]:
    """Count one round of each case, where it has not been, and return the outcomes of all that was counted."""
    kept = REPORTS / "trend-counts.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(tuple(line["case"]), line["round"]): line["outcomes"] for line in lines if line["source"] == SOURCE}
    left = [case for case in cases if (case, number) not in done]
    with ProcessPoolExecutor() as pool, kept.open("a") as file:
        for case, outcomes in zip(left, pool.map(_outcomes, left, [number] * len(left)), strict=True):
            done[case, number] = outcomes
            line = {"source": SOURCE, "case": case, "round": number, "outcomes": outcomes}
            print(json.dumps(line), file=file, flush=True)
    counts = defaultdict(Counter)
    for (case, _), outcomes in done.items():
        counts[case].update(outcomes)
    return counts


def _outcomes(case: Case, number: int) -> Counter:
    kind, growth, noise, steps = case
    batch = (NOISE_BATCH if kind == "noise" else BATCH)[steps]
    return Counter(
        judge_trend(*trace(kind, growth=growth, seed=seed, noise=noise, steps=steps)).outcome
        for seed in range(number * batch, (number + 1) * batch)
    )


def _rates(case: Case, counts: dict[Case, Counter]) -> list[tuple[float, float]]:
    """Return what is wrong of a case in percent, each with its goal."""
    kind, growth, _, _ = case
    percent = {outcome: 100 * n / counts[case].total() for outcome, n in counts[case].items()}
    fails = percent.get("FAIL", 0.0)
    if kind in STABLE:
        return [(fails, FALSE_FAIL), (percent.get("WARN", 0.0), FALSE_WARN)]
    if kind in STEPPED:
        return [(fails, FALSE_FAIL)]
    if kind in NET:
        return [(percent.get("PASS", 0.0), WRONG)]
    return [(fails, WRONG)] if growth == SMALL else [(100 - fails, WRONG)]


def _table(steps: int, counts: dict[Case, Counter]) -> str:
    rows = [f"| kind of trace | counted | {' | '.join(f'{noise:.1%}' for noise in NOISES)} |", "|---|---|---|---|---|"]
    for kind, growths in KINDS.items():
        cells = [
            " / ".join(_cell(*rate) for growth in growths for rate in _rates((kind, growth, noise, steps), counts))
            for noise in NOISES
            if (kind, growths[0], noise, steps) in counts
        ]
        rows += [f"| {kind} | {_wrong(kind)} | {' | '.join(cells)} |"] if cells else []
    traces_of = {kind: counts[kind, SIZE, NOISES[-1], steps].total() for kind in ("noise", "flat")}
    title = f"## {steps:,} steps: {traces_of['flat']:,} traces of a kind, {traces_of['noise']:,} of noise"
    return "\n".join([title, "", *rows])


def _wrong(kind: str) -> str:
    if kind in STABLE:
        return "FAIL / WARN"
    if kind in STEPPED:
        return "FAIL"
    return f"PASS at {CLIMB:.0%}" if kind in NET else f"FAIL at {SMALL:.0%} / not FAIL at {LARGE:.0%}"


def _cell(rate: float, goal: float) -> str:
    return f"{rate:.2f}" if rate <= goal else f"**{rate:.2f}**"


def _late_table(late: list[Case], counts: dict[Case, Counter]) -> str:
    rows = ["| steps of the rise | rise |", "|---|---|"]
    for kind in LATE:
        seen = [case[1] for case in late if case[0] == kind and _rates(case, counts)[0][0] <= WRONG]
        rows.append(f"| {kind.split()[1]} | {f'{min(seen):.0%}' if seen else f'above {max(GROWTHS):.0%}'} |")
    return "\n".join(["## 5 % noise: the least rise at the end of a run that is missed in 1 of 100 at most", "", *rows])


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
