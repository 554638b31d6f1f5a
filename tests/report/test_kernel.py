"""How a kernel ends: an idle one by a message, a busy one is interrupted first."""

import asyncio
import signal

import pytest

from nsa_lib.report.kernel import StoppableKernel

WAIT_S = 600
"""Far above a slow day; the tests wait for events."""


async def ended(code):
    """Start a kernel, let it begin `code`, end it, and return the signals that it was sent and what it printed."""
    kernel, sent = StoppableKernel(kernel_name="python3"), []
    await kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    await client.wait_for_ready(timeout=WAIT_S)
    send = kernel.provisioner.send_signal

    async def told(number):
        sent.append(number)
        await send(number)

    kernel.provisioner.send_signal = told
    client.execute(code)
    said = ""
    while "begun" not in said:
        said += str((await client.get_iopub_msg(timeout=WAIT_S))["content"].get("text", ""))
    await kernel.shutdown_kernel()
    alive = await kernel.is_alive()
    client.stop_channels()
    return sent, alive


@pytest.mark.parametrize(
    ("code", "signals"),
    [
        ("print('begun')", []),
        ("import time; print('begun', flush=True); time.sleep(600)", [signal.SIGINT]),
    ],
    ids=["idle", "busy"],
)
def test_only_a_busy_kernel_is_interrupted_before_it_ends(code, signals):
    assert asyncio.run(ended(code)) == (signals, False)
