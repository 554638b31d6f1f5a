"""How often the judgement of a fleet is wrong, by simulation: a part of `make bench`.

Members are made from a model of how healthy GPUs of one kind differ, and of what goes wrong with some. What is counted:
healthy members that are quarantined, and faulty ones that are not. The table goes to reports/fleet-error-rates.md.

The model. Healthy: step time 100 ms times a factor of the GPU (Student's t of 5 degrees of freedom, spread 1 %), of its
host (normal, 0.4 %) and of the run (normal, 0.2 %); rows remapped long ago in one of 50. Faulty, two of 100, each kind
alike: wrong bits; other memory; slower by 15 to 100 %; throttled by heat; uncorrectable ECC errors; a failed smoke; one
that was killed; one that left no run.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from nsa_lib.runs import environment
from nsa_lib.workbook.fleet.gates import judged_fleet, quarantine
from nsa_lib.workbook.fleet.members import Fleet, Member
from nsa_lib.workbook.fleet.parameters import Expected
from tests.workbook.fleet.made import TOLD, member, told

MEMBERS = 10_000

SIZES = (8, 64, 1000, MEMBERS)
"""Members of a fleet; of each size so many fleets that there are MEMBERS."""

FAULTY = 0.02

FALSE_ALARMS, MISSES = 1 / 1000, 1 / 100

PROMISED_FROM = 64
"""Members of a fleet from which on the goals are promised: the spread of a smaller one is too uncertain."""

HEADING = (
    f"{MEMBERS:,} members in fleets of each size, a fiftieth of them faulty. Goals: at most 1 of 1,000 healthy members "
    f"quarantined, at most 1 of 100 faulty ones missed, in fleets of {PROMISED_FROM} and more. Made by "
    "`python -m tests.bench_fleet`, which states the model."
)

GPUS_PER_HOST = 8


def healthy(rank: int, host_factor: float, draw: random.Random) -> Member:
    """Return a healthy member."""
    normal = [draw.gauss(0, 1) for _ in range(6)]
    heavy = normal[0] / (sum(z * z for z in normal[1:]) / 5) ** 0.5
    factor = (1 + 0.01 * heavy / (5 / 3) ** 0.5) * host_factor * (1 + draw.gauss(0, 0.002))
    rows = float(draw.random() < 1 / 50)
    seen = {**TOLD, "remapped_rows": rows}
    return member(rank, step_ms=100 * factor, health={"start": seen, "end": seen})


FAULTS = {
    "wrong bits": lambda one, draw: replace(one, fingerprint=f"{draw.getrandbits(256):064x}"),
    "other memory": lambda one, draw: replace(one, peak_alloc_bytes=one.peak_alloc_bytes + 512),
    "slow": lambda one, draw: replace(one, step_ms=one.step_ms * draw.uniform(1.15, 2.0)),
    "throttled": lambda one, draw: replace(one, health=told(slowdown_us={"hw_therm_slowdown": 1e6})),
    "ECC errors": lambda one, draw: replace(one, health=told(ecc_uncorrectable=1.0)),
    "failed": lambda one, draw: replace(one, verdict="NO-GO", reasons=["attention failed"]),
    "killed": lambda one, draw: replace(
        one, verdict="INCOMPLETE", fingerprint=None, step_ms=None, peak_alloc_bytes=None, health=None
    ),
    "missing": lambda one, draw: None,
}


def simulated(size: int, seed: int) -> tuple[Fleet, dict[int, str]]:
    """Return a fleet, and what is wrong with which of its members."""
    draw = random.Random(f"{size} {seed}")
    hosts = [1 + draw.gauss(0, 0.004) for _ in range(-(-size // GPUS_PER_HOST))]
    members, truth = [], {}
    for rank in range(size):
        one = healthy(rank, hosts[rank // GPUS_PER_HOST], draw)
        if draw.random() < FAULTY:
            truth[rank] = draw.choice(list(FAULTS))
            one = FAULTS[truth[rank]](one, draw)
        members += [one] if one else []
    return Fleet(members, Expected(size)), truth


def counted(size: int, members: int) -> Counter:
    """Count what is said of fleets of a size: healthy members, false alarms, and of each fault all and those missed."""
    found: Counter = Counter()
    for seed in range(members // size):
        fleet, truth = simulated(size, seed)
        named = quarantine(judged_fleet(fleet))
        ranks = {one.member.rank if one.member else int(one.name.split()[-1]) for one in named}
        found["healthy"] += size - len(truth)
        found["false alarms"] += len(ranks - truth.keys())
        for rank, fault in truth.items():
            found[fault] += 1
            found[f"{fault} missed"] += rank not in ranks
    return found


def holds(found: Counter) -> bool:
    """Return whether what was counted meets the goals."""
    faulty, missed = (sum(found[f"{fault}{what}"] for fault in FAULTS) for what in ("", " missed"))
    return found["false alarms"] <= FALSE_ALARMS * found["healthy"] and missed <= MISSES * faulty


def table(rows: dict[int, Counter]) -> str:
    """Return what was counted, as Markdown: of each fault missed / planted."""
    lines = ["| members of a fleet | healthy | quarantined of them |" + "".join(f" {fault} |" for fault in FAULTS)]
    lines.append("|---|" + "---:|" * (2 + len(FAULTS)))
    for size, found in rows.items():
        cells = [f"{found['healthy']:,}", str(found["false alarms"])]
        cells += [f"{found[f'{fault} missed']} / {found[fault]}" for fault in FAULTS]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> bool:
    """Simulate, print and keep the table; return whether the goals were met where they are promised."""
    rows = {size: counted(size, MEMBERS) for size in SIZES}
    text = f"{HEADING}\n\nOf each fault: missed / planted.\n\n{table(rows)}\n"
    (environment.PROJECT / "reports" / "fleet-error-rates.md").write_text(text)
    print(text)
    return all(holds(found) for size, found in rows.items() if size >= PROMISED_FROM)


if __name__ == "__main__":
    raise SystemExit(0 if main() else "the goals were not met")
