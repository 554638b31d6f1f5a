"""How often the trend rule is wrong, by simulation: a part of `make bench`.

Each kind of trace has a stated truth (`tests.traces`). A FAIL where nothing rises steadily, or by 8 % at most, is a
false one; anything else than FAIL for a steady rise of 12 % or more is a missed one. The table goes to
reports/trend-error-rates-<UTC>.md.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from itertools import product

from nsa_lib.judgement.trend import judge_trend
from nsa_lib.runs import environment
from tests.traces import RISING, STABLE, trace

BASES_MIB = (34.0, 1762.0, 20000.0)

SEEDS = 1000

LIMIT_PERCENT = 1.0

GROWTHS = (0.08, 0.12)
"""Up to the first a rise must not fail, from the second on it must."""


def main() -> bool:
    """Simulate, print and keep the table; return whether every rate is within its limit."""
    jobs = list(product([*STABLE, *RISING], BASES_MIB, GROWTHS))
    with ProcessPoolExecutor() as pool:
        shares = dict(zip(jobs, pool.map(fail_percent, *zip(*jobs))))
    rows = [(kind, base, *wrong_percent(kind, base, shares)) for kind in [*STABLE, *RISING] for base in BASES_MIB]
    table = "\n".join([*HEADER, *(_row(row) for row in rows), ""])
    path = environment.PROJECT / "reports" / f"trend-error-rates-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.md"
    path.write_text(table)
    print(table)
    print(path)
    return all(rate is None or rate <= LIMIT_PERCENT for row in rows for rate in row[2:])


HEADER = (
    f"Wrong verdicts of the trend rule in percent of {SEEDS:,} traces of 100 steps (long leak: 100 traces of 1,000), "
    "noise 0.3 %.",
    "",
    "| kind of trace | base, MiB | truth | false FAIL, % | missed FAIL at 12 %, % |",
    "|---|---|---|---|---|",
)


def fail_percent(kind: str, base_mib: float, growth: float) -> float:
    """Return how many of a kind's traces FAIL."""
    seeds = range(SEEDS // 10 if kind == "long leak" else SEEDS)
    judged = (judge_trend(*trace(kind, growth=growth, base_mib=base_mib, seed=seed)).outcome for seed in seeds)
    return 100 * sum(outcome == "FAIL" for outcome in judged) / len(seeds)


def wrong_percent(kind: str, base_mib: float, shares: dict) -> tuple[float, float | None]:
    """Return the false and the missed FAILs of a kind; None where it must never FAIL."""
    if kind in STABLE:
        return max(shares[kind, base_mib, growth] for growth in GROWTHS), None
    return shares[kind, base_mib, GROWTHS[0]], 100 - shares[kind, base_mib, GROWTHS[1]]


def _row(row: tuple[str, float, float, float | None]) -> str:
    kind, base_mib, false, missed = row
    truth = "never FAIL" if missed is None else "FAIL past 10 %"
    return f"| {kind} | {base_mib:,.0f} | {truth} | {false:.1f} | {'' if missed is None else f'{missed:.1f}'} |"


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
