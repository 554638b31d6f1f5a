"""How far measured memory lies from its prediction, in every kept configuration: `python -m tests.prediction_interval`.

It reads the tables that `tests.bench_prediction` left of real GPUs. The interval of `capacity` comes from them, so its
miss rate is counted twice: on all of them, and for each configuration with the interval that the others alone give.
"""

import re
from pathlib import Path

from nsa_lib.runs.environment import PROJECT
from nsa_lib.workbook.capacity.fits import ABOVE, BELOW

TABLES = ("prediction_h100.md", "prediction_h200.md", "prediction_h200_sweep.md")

CHAOTIC = 1.0
"""Share of its prediction by which a configuration is off that says nothing of the others: its reserved is chaotic."""

FIGURE = re.compile(r"[\d,.]+")


def shares(name, folder=PROJECT / "reports" / "examples"):
    """Return by which share of its prediction each measured configuration is off: allocated and reserved."""
    rows = [line.strip("| ").split(" | ") for line in Path(folder, name).read_text().splitlines() if line[:2] == "| "]
    last = [[float(cell.replace(",", "")) for cell in row[-6:] if FIGURE.fullmatch(cell)] for row in rows]
    return [(found[1] / found[0] - 1, found[3] / found[2] - 1) for found in last if len(found) == 4]


def held(reserved):
    """Return in how many configurations the interval of capacity holds."""
    return sum(-BELOW <= share <= ABOVE for share in reserved)


def held_by_the_others(reserved):
    """Return how many configurations lie within what the others span, the chaotic ones left out of the span."""
    count = 0
    for place, share in enumerate(reserved):
        others = [one for one in reserved[:place] + reserved[place + 1 :] if abs(one) < CHAOTIC]
        count += min(others) <= share <= max(others)
    return count


def main():
    """Print the rates."""
    found = [share for name in TABLES for share in shares(name)]
    reserved = [share for _, share in found]
    print(f"allocated within 2 %: {sum(abs(share) <= 0.02 for share, _ in found)} of {len(found)}")
    print(f"reserved within 5 %: {sum(abs(share) <= 0.05 for share in reserved)} of {len(found)}")
    print(f"reserved within -{BELOW:.0%} to +{ABOVE:.0%}: {held(reserved)} of {len(found)}")
    print(f"within what the others span: {held_by_the_others(reserved)} of {len(found)}")


if __name__ == "__main__":
    main()
