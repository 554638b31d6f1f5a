"""After a refusal nothing of an earlier run is left in the notebook, whose later cells may be run all the same."""

import pytest

from nsa_lib.runs.earlier import forget_earlier
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.decide import decide
from nsa_lib.workbook.launch import launch
from nsa_lib.workbook.questions import plan


@pytest.mark.parametrize(
    ("call", "target", "source"),
    [
        (lambda namespace: plan("smoke", namespace), "smoke", 'smoke = plan("smoke", globals())\nsmoke'),
        (decide, "run", "run = decide(globals())"),
        (launch, "launched", "launched = launch(globals())"),
    ],
    ids=["plan", "decide", "launch"],
)
def test_what_is_refused_leaves_no_earlier_run(call, target, source, tmp_path):
    mistyped = 'out_dir: str = ""\naccept_reviews: bool = True'
    earlier = {target: "earlier", "run": "earlier", "mine": 3, "out_dir": str(tmp_path), "accept_reviews": True}
    namespace = {**earlier, "In": ["", mistyped, source]}
    with pytest.raises(ConfigError, match="accept_reviews"):
        call(namespace)
    assert namespace.keys() == {"mine", "out_dir", "accept_reviews", "In"}


def test_a_cell_with_magics_and_a_call_from_no_cell_forget_the_run_alone():
    for named in ({"In": ["", "%time smoke = plan()"]}, {}):
        namespace = {"run": 1, "smoke": 2, **named}
        forget_earlier(namespace)
        assert namespace == {"smoke": 2, **named}
