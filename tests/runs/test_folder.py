"""Names that one run alone gets, also if two begin in one second."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from nsa_lib.runs.folder import new_output, written

NOW = datetime(2025, 3, 1, 10, 15, tzinfo=timezone.utc)


def test_runs_that_begin_in_one_second_have_outputs_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_output(tmp_path / "reports", "smoke", NOW), range(16)))
    assert len(set(made)) == 16
    assert min(made, key=lambda path: len(path.name)).name == "smoke-20250301T101500Z.ipynb"
    assert (tmp_path / "reports" / "smoke-20250301T101500Z-16.ipynb") in made


def test_a_notebook_that_was_never_written_leaves_nothing(tmp_path):
    output = new_output(tmp_path, "smoke", NOW)
    assert not written(output)
    assert list(tmp_path.iterdir()) == []
    output.write_text("{}")
    assert written(output)
