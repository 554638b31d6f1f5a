"""The measured loop of a case: build, warm up, step, each with its heartbeat; and the result that it ends with."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import SCHEMA, Heartbeat
from nsa_lib.subject import training
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import accuracy, attention_map, data, faults, memory, preflight, profiling, timing
from nsa_lib.worker.timing import PhaseClock

MIB = 2**20


class NonFiniteError(FloatingPointError):
    """A loss or a gradient that is NaN or Inf."""


def run_to_result(case_file: Path) -> None:
    """Run the case in `case_file` and write result.json beside it: ok, oom, nan or unavailable.

    Any other failure propagates; the runner reads it off the exit status and stderr.
    """
    case = CaseConfig.from_json(case_file.read_text())
    heartbeat = Heartbeat(case_file.parent / "heartbeat.jsonl")
    ending = {"status": "ok", "reason": ""}
    facts: dict[str, object] = {}
    try:
        if case.device == "cuda" and not torch.cuda.is_available():
            ending = {"status": "unavailable", "reason": "torch finds no CUDA device"}
        else:
            with faults.planted(case):
                run_case(case, heartbeat, facts)
    except FloatingPointError as error:
        ending = {"status": "nan", "reason": str(error)}
    except (RuntimeError, MemoryError) as error:
        status = _named_failure(error)
        if status is None:
            raise
        ending = {"status": status, "reason": str(error).splitlines()[0]}
    result = {"schema": SCHEMA, "case_id": case.case_id, **ending, **facts}
    temporary = case_file.with_name("result.tmp")
    temporary.write_text(json.dumps(result, indent=1))
    os.replace(temporary, case_file.with_name("result.json"))


def _named_failure(error: Exception) -> str | None:
    """Return `oom` or `nan` if the error is one; torch has a type only for CUDA's lack of memory."""
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return "oom"
    return "nan" if "returned nan values" in text else None


def run_case(case: CaseConfig, heartbeat: Heartbeat, facts: dict[str, object]) -> None:
    """Run the case's steps, a heartbeat each, and put what only the worker knows into `facts`.

    A `backward` case waits for the device after each phase, to time it; a `train` case runs as a training does; a
    `timing` case is another loop, over its contestants; a `checks` case one over the checks of a preflight.

    Raises:
        NonFiniteError: naming the first offender, when a loss or gradient norm is NaN or Inf.
    """
    heartbeat.beat("build")
    if case.device == "cpu":
        # The same sums on every machine, and no threads that spin against each other where cores are shared.
        torch.set_num_threads(1)
    if case.device == "cuda" and case.budget_mib is not None:
        memory.cap_device(case.budget_mib)
    if case.work == "timing":
        timing.run_timing(case, heartbeat)
        return
    if case.work == "checks":
        preflight.run_checks(case, heartbeat, facts)
        return
    torch.manual_seed(case.seed)
    # Made on the CPU and moved in its final dtype: float32 weights must not raise the peak of a bfloat16 run.
    model = TinyLM(case.model, grad_checkpointing=case.grad_checkpointing)
    model = model.to(getattr(torch, case.dtype)).to(case.device)
    optimizer = training.make_optimizer(model, case.lr) if case.work == "train" else None
    with own_tables():  # the training starts as if nothing had been checked
        facts["routes"] = executed_routes(model, case) if case.model.attention == "nsa" else []
        if case.check_attention:
            facts["attention_error"] = accuracy.attention_errors(model.blocks[0].attention, length=case.seq_len)
        if case.compare_selected:
            facts["selected_error"] = accuracy.selected_errors(model.blocks[0].attention, length=case.seq_len)
    facts["effective"] = effective_settings(model, case)
    if case.device == "cuda":
        torch.cuda.empty_cache()  # its pool too
        facts["device_total_mib"] = torch.cuda.get_device_properties(0).total_memory / MIB
    if case.budget_mib is not None:
        facts["device_total_mib"] = case.budget_mib
    if case.compile:
        model.compile_blocks()
    batches = data.batches(case)
    windows = _operator_windows(case)
    anomalies = torch.autograd.set_detect_anomaly(case.detect_anomaly)
    meter = memory.meter(case.device, case.alloc_conf, budget_mib=case.budget_mib)
    with own_tables(), anomalies, meter, windows:
        meter.track(model)
        heartbeat.beat("warmup")
        for step in range(1, case.steps + 1):
            tokens = next(batches).to(case.device)
            began = time.perf_counter()
            meter.begin_step()
            if optimizer is None:
                clock = PhaseClock(case.device, meter.mark)
                result = training.backward_step(model, tokens, mark=clock.mark, loss_chunk=case.loss_chunk)
                phases_ms = clock.phases_ms
            else:
                result = training.train_step(model, optimizer, tokens, mark=meter.mark, loss_chunk=case.loss_chunk)
                phases_ms = {}
            loss, norm = result.loss.item(), result.grad_norm.item()  # waits for the device
            step_s = time.perf_counter() - began
            heartbeat.beat(
                "warmup" if step <= case.warmup_steps else "step",
                step,
                loss=loss,
                grad_norm=norm,
                step_ms=1000 * step_s,
                tokens_per_s=case.batch * case.seq_len / step_s,
                **phases_ms,
                **meter.read(),
            )
            _require_finite(model, step, loss, norm)
            facts["state_mib"] = training.state_bytes(model, optimizer) / MIB
            windows.step(meter.operator_counts)
    if windows.early and windows.late:
        facts["operators"] = {"early": windows.early, "late": windows.late}
    if case.look:  # only now: it allocates and calls operators, and nothing is measured any more
        facts["attention_map"] = attention_map.attention_map(model, tokens[:, :-1])


def _operator_windows(case: CaseConfig) -> profiling.OperatorWindows | profiling.TrackedWindows:
    """Return what counts the case's operators: the profiler on a GPU, what the memory tracker saw on a CPU."""
    if case.profile_operators and case.device == "cuda":
        return profiling.OperatorWindows(steps=case.steps, device=case.device)
    return profiling.TrackedWindows(steps=case.steps if case.profile_operators else 0)


def _require_finite(model: TinyLM, step: int, loss: float, norm: float) -> None:
    for what, value in (("loss", loss), ("grad_norm", norm)):
        if value - value != 0:  # NaN and Inf alone
            offender = training.first_non_finite(model)
            raise NonFiniteError(f"{what} is {value} at step {step}; first gradient that is not finite: {offender}")


def executed_routes(model: TinyLM, case: CaseConfig) -> list[str]:
    """Return the backends that the model's attention layers really enter, as the running code names itself."""
    x = torch.zeros(1, case.model.nsa.l_sel, case.model.nsa.dim, dtype=getattr(torch, case.dtype), device=case.device)

    def run() -> None:
        with torch.no_grad():
            for block in model.blocks:
                block.attention(x)

    return sorted(profiling.executed_routes(run))


def effective_settings(model: TinyLM, case: CaseConfig) -> dict[str, object]:
    """Return what is in force, read back from torch and from the model rather than from what was asked for."""
    settings: dict[str, object] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
        "device": ", ".join(sorted({str(p.device) for p in model.parameters()})),
    }
    if case.device == "cuda":
        # Private, but the only place that tells which setting the allocator obeys.
        settings["allocator"] = torch.cuda.memory._snapshot()["allocator_settings"]
    return settings
