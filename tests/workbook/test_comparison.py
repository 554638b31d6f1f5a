"""Two runs, side by side."""

import pandas as pd

from nsa_lib.workbook.comparison import differences_table


def test_hashes_side_by_side_are_shortened():
    changed = pd.DataFrame([["environment", "source_sha256", "ab" * 32, "cd" * 32]], columns=["kind", "name", "a", "b"])
    assert "abababababab…" in repr(differences_table(changed))
