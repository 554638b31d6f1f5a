"""Settings that every test shares."""

import os
import signal

import pytest
import torch

from nsa_lib.runs.stop_button import SIGNALS
from nsa_lib.subject.config import OWN
from tests.stand_in import plain_fused  # noqa: F401

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels then run on the CPU


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts a suite in the background has it ignored, and its children too: no stop button would be heard.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors of the tests are tiny: on a busy machine, threads that wait for each other take ten times as long.
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _no_backend_but_ours_is_left():
    # A process has one subject: a user's kernel stays among the backends of the process that made a layer of it.
    yield
    from nsa_lib.subject.attention import BACKENDS  # not before TRITON_INTERPRET is set

    BACKENDS.pop(OWN, None)


@pytest.fixture(autouse=True)
def _signals_are_heard_as_before():
    # Who does not give them back makes a later test, of another file, hear a signal that was sent long before it.
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1, "an event loop still takes the signals"


@pytest.fixture(autouse=True)
def _same_numbers_each_time():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    """Recorded run folders to copy from; no test may change them."""
    from tests.made_runs import Templates  # not before TRITON_INTERPRET is set

    return Templates(tmp_path_factory.mktemp("templates"))
