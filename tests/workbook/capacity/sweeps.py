"""Sweeps that are made up, to judge what is made of them."""

import pandas as pd

from nsa_lib.workbook.capacity.ranges import with_ranges

ASKED = {"seq_len": 2048, "batch": 1, "layers": 12}


def made_sweep(axis, sizes, reserved, allocated=None, variant="as asked"):
    """Return the rows of one curve; allocated is as reserved if not given."""
    rows = [
        {
            "axis": axis, "variant": variant, **ASKED, axis: size, "peak_alloc_mib": needs, "phase": "backward",
            "terms": {"activations": needs}, "peak_reserved_mib": mib,
        }
        for size, mib, needs in zip(sizes, reserved, allocated or reserved, strict=True)
    ]  # fmt: skip
    return with_ranges(pd.DataFrame(rows))
