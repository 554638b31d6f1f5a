"""The measured loop of a case: build, warm up, step, each with its heartbeat; and the result that it ends with.

What only the worker knows are facts. Each work yields its facts as they become known, so that those found before a
failure are in the result too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from nsa_lib.contract.allocator import MIB
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.contract.heartbeat import SCHEMA, Heartbeat
from nsa_lib.contract.origin import ORIGIN
from nsa_lib.subject import distributed, training
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.own.attention import install
from nsa_lib.worker import accuracy, attention_map, attestation, data, digest, faults, preflight, profiling, timing
from nsa_lib.worker.building import built, step_of
from nsa_lib.worker.devices import DEVICES
from nsa_lib.worker.fingerprint import FingerprintRecorder, write_fingerprint
from nsa_lib.worker.fresh_tokens import fresh_tokens
from nsa_lib.worker.graphed import GraphedStep
from nsa_lib.worker.memory import CpuMeter, CudaMeter
from nsa_lib.worker.memory_snapshot import run_snapshot
from nsa_lib.worker.meter_check import meter_check
from nsa_lib.worker.origin import origin
from nsa_lib.worker.phases import in_order
from nsa_lib.worker.planted_nan import planted_nan
from nsa_lib.worker.ranks.collectives import run_collectives
from nsa_lib.worker.ranks.let_go import let_go_by_gloo
from nsa_lib.worker.ranks.share import own_sequences
from nsa_lib.worker.ranks.step_recorder import StepRecorder
from nsa_lib.worker.repeated import repeat
from nsa_lib.worker.timing import PhaseClock

Facts = Mapping[str, object]


class NonFiniteError(FloatingPointError):
    """A loss or a gradient that is NaN or Inf."""


def run_to_result(case_file: Path, folder: Path | None = None) -> None:
    """Run the case in `case_file` and write result.json into `folder`, or beside it: ok, oom, nan or unavailable.

    Any other failure propagates; the runner reads it off the exit status and stderr.
    """
    text = case_file.read_text()
    case, folder = CaseConfig.from_json(text), folder or case_file.parent
    heartbeat = Heartbeat(folder / "heartbeat.jsonl")
    found = origin(case, text)
    heartbeat.beat("build", **{ORIGIN: found})
    ending = {"status": "ok", "reason": ""}
    facts: dict[str, object] = {}
    try:
        if why := DEVICES[case.device].why_missing():
            ending = {"status": "unavailable", "reason": why}
        else:
            with faults.planted(case):
                for known in run_case(case, heartbeat):
                    facts.update(known)
    except FloatingPointError as error:
        ending = {"status": "nan", "reason": str(error)}
    except (RuntimeError, MemoryError) as error:
        status = _named_failure(error)
        if status is None:
            raise
        ending = {"status": status, "reason": str(error).splitlines()[0]}
    if "fingerprint" in facts:
        write_fingerprint(folder, case, found | facts, facts.pop("fingerprint"))
    write_json(folder / "result.json", {"schema": SCHEMA, "case_id": case.case_id, **ending, **facts})


def _named_failure(error: Exception) -> str | None:
    """Return `oom` or `nan` if the error is one; torch has a type only for CUDA's lack of memory."""
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return "oom"
    return "nan" if "returned nan values" in text else None


def run_case(case: CaseConfig, heartbeat: Heartbeat) -> Iterator[Facts]:
    """Run the work of a case, a heartbeat each step, and yield its facts as they become known.

    Raises NonFiniteError, naming the first offender, when a loss or gradient norm is NaN or Inf.
    """
    DEVICES[case.device].prepare(case.budget_mib)
    yield install(case.model)
    yield from WORKS[case.work](case, heartbeat)


@dataclass(frozen=True)
class Stepped:
    """A model, and the step that a work takes with it."""

    model: TinyLM
    optimizer: torch.optim.Optimizer | None
    take: Callable[[torch.Tensor, CudaMeter | CpuMeter], tuple[training.StepResult, dict[str, float]]]
    """From tokens and the meter whose `mark` ends each phase to the step's result and the times that it took itself."""


def train(case: CaseConfig, heartbeat: Heartbeat) -> Iterator[Facts]:
    """Take whole steps, as a training does: nothing waits for the device between their phases."""
    model = built(case)
    if case.digest_parts:
        yield {"start": digest.parameters_digest(model.parameters(), case.digest_parts)}
    step = step_of(case)
    if case.is_launched:
        step = partial(distributed.train_step, distributed.STRATEGIES[case.strategy](model, case.loss_chunk))
    optimizer = training.make_optimizer(model, case.lr)

    def take(tokens: torch.Tensor, meter: CudaMeter | CpuMeter) -> tuple[training.StepResult, dict[str, float]]:
        return step(model, optimizer, tokens, mark=in_order(model, meter.mark)), {}

    if case.is_graph:
        for group in optimizer.param_groups:
            group["capturable"] = True
        take = GraphedStep(lambda tokens, mark: step(model, optimizer, tokens, mark=mark)).take
    yield from _check_and_step(Stepped(model, optimizer, take), case, heartbeat)


def backward(case: CaseConfig, heartbeat: Heartbeat) -> Iterator[Facts]:
    """Take forward and backward alone, and wait for the device after each, to time it."""
    model = built(case)

    def take(tokens: torch.Tensor, meter: CudaMeter | CpuMeter) -> tuple[training.StepResult, dict[str, float]]:
        clock = PhaseClock(case.device, in_order(model, meter.mark))
        result = training.backward_step(model, tokens, mark=clock.mark, loss_chunk=case.loss_chunk)
        return result, clock.phases_ms

    return _check_and_step(Stepped(model, None, take), case, heartbeat)


WORKS: dict[str, Callable[[CaseConfig, Heartbeat], Iterable[Facts]]] = {
    "train": train,
    "backward": backward,
    "timing": timing.run_timing,
    "checks": preflight.run_checks,
    "collectives": run_collectives,
    "repeat": repeat,
    "snapshot": run_snapshot,
}
"""What a case does, by the names of `contract.case.WORKS`."""


def _check_and_step(stepped: Stepped, case: CaseConfig, heartbeat: Heartbeat) -> Iterator[Facts]:
    model, device = stepped.model, DEVICES[case.device]
    yield from facts_before_training(model, case)
    device.empty_cache()  # the pool of what was checked too
    if (total_mib := device.total_mib(case.budget_mib)) is not None:
        yield {"device_total_mib": total_mib}
    if case.compile:
        attestation.show_always(model)
        model.compile_blocks()
    tokens, witness = yield from measured_steps(stepped, case, heartbeat)
    if case.look:  # only now: it allocates and calls operators, and nothing is measured any more
        yield {"attention_map": attention_map.attention_map(model, tokens[:, :-1])}
    yield from _more_steps(stepped, case, witness, alive=lambda: heartbeat.beat("judge"))


def _more_steps(
    stepped: Stepped,
    case: CaseConfig,
    witness: attestation.Witness,
    *,
    alive: Callable[[], None],
) -> Iterator[Facts]:
    """Take steps that nobody measures: on fresh tokens, and some of those that were measured again."""
    meter = DEVICES[case.device].meter(case.alloc_conf, case.budget_mib)

    def take(tokens: torch.Tensor) -> training.StepResult:
        return stepped.take(tokens, meter)[0]

    if case.show_fresh:
        with own_tables():
            found = fresh_tokens(stepped.model, take, case, alive=alive)
        yield {"fresh_tokens": found}
    if case.attest:  # last of all: it puts the model back to an earlier step
        with own_tables():
            found = witness.replay(stepped.model, stepped.optimizer, take, _judge_on(case), alive=alive)
        yield {"replay": found}


def _judge_on(case: CaseConfig) -> str:
    """Return the device on which the judge computes: not one whose memory is emulated."""
    return case.device if case.budget_mib is None else "cpu"


def facts_before_training(model: TinyLM, case: CaseConfig) -> Iterator[Facts]:
    """Yield the routes of the attention, the errors that the case asks for, and what is in force."""
    if case.is_launched:  # a layer of a sharded model cannot run by itself
        yield {"effective": effective_settings(model, case)}
        return
    with own_tables():  # the training starts as if nothing had been checked
        yield {"routes": executed_routes(model, case) if case.model.has_reference else []}
        if case.check_attention:
            errors = accuracy.attention_errors(model.blocks[0].attention, length=case.seq_len)
            yield {"attention_error": errors}
        if case.compare_selected:
            errors = accuracy.selected_errors(model.blocks[0].attention, case.model.nsa, length=case.seq_len)
            yield {"selected_error": errors}
    yield {"effective": effective_settings(model, case)}


def measured_steps(
    stepped: Stepped, case: CaseConfig, heartbeat: Heartbeat
) -> Generator[Facts, None, tuple[torch.Tensor, attestation.Witness]]:
    """Take the steps of a case under its meters, yield what is known, return the last step's tokens and the witness."""
    device, batches = DEVICES[case.device], data.batches(case)
    windows = device.operator_windows(steps=case.steps) if case.profile_operators else profiling.TrackedWindows(steps=0)
    anomalies = torch.autograd.set_detect_anomaly(case.detect_anomaly)
    meter = device.meter(case.alloc_conf, case.budget_mib)
    witness, recorder = attestation.Witness(case, meter.allocator), StepRecorder(stepped.model, case)
    prints = FingerprintRecorder(stepped.model, case)
    over_gloo = let_go_by_gloo() if case.is_launched and case.device == "cpu" else nullcontext()
    with own_tables(), anomalies, meter, windows, recorder, over_gloo:
        meter.track(stepped.model)
        heartbeat.beat("warmup")
        for step in range(1, case.steps + 1):
            tokens = own_sequences(next(batches)).to(case.device)
            with witness.watching(step, stepped.model, tokens, stepped.optimizer), prints.watching(step):
                beat = _measured_step(stepped, tokens, meter, case)
            windows.step(meter.operator_counts)  # before what is only recorded calls operators too
            beat |= recorder.figures(tokens)
            heartbeat.beat("warmup" if step <= case.warmup_steps else "step", step, **beat)
            witness.returned(step, beat["loss"], beat["grad_norm"], stepped.model, stepped.optimizer)
            _require_finite(stepped.model, step, beat["loss"], beat["grad_norm"])
            if step in witness.steps:
                yield {"executed": witness.executed}
            yield from recorder.after(step)
            prints.after(step, beat["loss"])
            yield {"state_mib": training.state_bytes(stepped.model, stepped.optimizer) / MIB}
        heartbeat.beat("judge")
        if case.detect_anomaly:
            yield {"planted_nan": planted_nan(stepped.model, lambda: stepped.take(tokens, meter))}
        yield {"meter": meter_check(meter, case.device, is_bounded=case.budget_mib is not None)}
    if case.fingerprint:
        yield {"fingerprint": prints.found}
    if windows.early and windows.late:
        yield {"operators": {"early": windows.early, "late": windows.late}}
    if case.attest:  # only now: it allocates, and nothing is measured any more
        yield {"attestation": witness.judge(_judge_on(case), alive=lambda: heartbeat.beat("judge"))}
    return tokens, witness


def _measured_step(
    stepped: Stepped, tokens: torch.Tensor, meter: CudaMeter | CpuMeter, case: CaseConfig
) -> dict[str, float]:
    """Take one step and return the figures of its heartbeat."""
    began = time.perf_counter()
    meter.begin_step()
    result, phases_ms = stepped.take(tokens, meter)
    loss, norm = result.loss.item(), result.grad_norm.item()  # waits for the device
    step_s = time.perf_counter() - began
    times = {"step_ms": 1000 * step_s, "tokens_per_s": case.batch * case.seq_len / step_s, **phases_ms}
    return {"loss": loss, "grad_norm": norm, **times, **meter.read()}


def _require_finite(model: TinyLM, step: int, loss: float, norm: float) -> None:
    for what, value in (("loss", loss), ("grad_norm", norm)):
        if value - value != 0:  # NaN and Inf alone
            offender = training.first_non_finite(model)
            raise NonFiniteError(f"{what} is {value} at step {step}; first gradient that is not finite: {offender}")


def executed_routes(model: TinyLM, case: CaseConfig) -> list[str]:
    """Return the backends that the model's attention layers really enter, as the running code names itself."""
    x = torch.zeros(1, case.model.nsa.l_sel, case.model.nsa.dim, dtype=getattr(torch, case.dtype), device=case.device)
    return sorted(profiling.executed_routes(lambda: accuracy.pass_through_layers(model, x)))


def effective_settings(model: TinyLM, case: CaseConfig) -> dict[str, object]:
    """Return what is in force, read back from torch and from the model rather than from what was asked for."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})),
        "device": ", ".join(sorted({str(p.device) for p in model.parameters()})),
        **DEVICES[case.device].settings(),
    }
