"""What decorates a verdict fails in one visible line, and never raises."""

from nsa_lib.report.guard import guarded, show


def test_what_is_made_is_shown(capsys):
    assert show(lambda: 7) == 7
    assert capsys.readouterr().out == ""


def test_what_fails_leaves_one_line_and_none(capsys):
    assert show(lambda: 1 / 0) is None
    assert (
        capsys.readouterr().out == "not shown, and without a say in the verdict: ZeroDivisionError: division by zero\n"
    )


def test_an_error_of_many_lines_or_none_is_one_line():
    def fail(text):
        raise ValueError(text)

    assert guarded(lambda: fail("first\nsecond"))[1].endswith("ValueError: first")
    assert guarded(lambda: fail(""))[1].endswith("ValueError: ")
