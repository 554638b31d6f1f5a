"""Lines that fit a terminal, and are left as they are where a program reads them."""

import io

from nsa_lib.contract.lines import folded, say

PATH = "/a/folder/of/runs/" + "x" * 80


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_wide_line_is_folded_at_words_and_loses_none():
    text = "  - " + "a word of it " * 20 + "\nshort"
    lines = folded(text).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("    ") for line in lines[1:-1]), "what goes on is indented"
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())


def test_a_path_stays_whole_and_what_fits_stays_as_it_is():
    assert PATH in folded(f"the report of the run lies at {PATH} now").split()
    table = "a   b\n" + "-" * 80
    assert folded(table) == table
    assert folded("") == ""


def test_a_terminal_alone_is_folded_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        say("nine words that are one line for a program", "and another", to=stream)
    assert terminal.getvalue() == "nine words that are one line for a\n  program\nand another\n"
    assert pipe.getvalue() == "nine words that are one line for a program\nand another\n"
