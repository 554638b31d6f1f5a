"""Mutants of what ranks share, and of what is recorded of it, each through `several_gpus`.

Of 14 steps memory is not judged, so that an honest run is INCOMPLETE; a mutant must make its gate fail.
"""

from __future__ import annotations

from tests.mutation.mutant import Mutant

WORKER = "nsa_lib/worker"
DISTRIBUTED = "nsa_lib/subject/distributed.py"
SHARE = f"{WORKER}/ranks/share.py"


def ranks(
    name: str, file: str, function: str, old: str, new: str, *gates: str, strategy: str = "ddp", **more: object
) -> Mutant:
    """Return a mutant of a strategy."""
    named = tuple(f"{gate}_{strategy}" for gate in gates)
    return Mutant(f"ranks: {name}", file, function, old, new, named, {"strategies": strategy, **more}, "several_gpus")


OF_THE_RANKS = (
    ranks("DDP that never synchronises", DISTRIBUTED, "ddp", "DistributedDataParallel(LossOfTokens(model, loss_chunk), gradient_as_bucket_view=True)", "LossOfTokens(model, loss_chunk)", "gradients", "parameters"),
    ranks("gradients summed in the place of averaged", DISTRIBUTED, "train_step", "norm = whole(", "torch._foreach_mul_([p.grad for p in model.parameters()], distributed.get_world_size())\n    norm = whole(", "gradients"),
    ranks("every rank trains on the first one's sequences", SHARE, "own_sequences", "tokens.chunk(count)[rank]", "tokens.chunk(count)[0]", "data"),
    ranks("shares that overlap by a sequence", SHARE, "own_sequences", "tokens.chunk(count)[rank]", "tokens[rank : rank + len(tokens) // count]", "data", batch=4),
    ranks("a rank that never updates", DISTRIBUTED, "train_step", "optimizer.step()", "if distributed.get_rank() != 1:\n        optimizer.step()", "parameters"),
    ranks("one step in five not synchronised", DISTRIBUTED, "train_step", "loss = loss_of(tokens)", "model.calls = getattr(model, 'calls', 0) + 1\n    loss_of.require_backward_grad_sync = model.calls % 5 != 0\n    loss = loss_of(tokens)", "gradients", "parameters"),
    ranks("a seed of its own for each rank", f"{WORKER}/building.py", "built", "torch.manual_seed(case.seed)", 'torch.manual_seed(case.seed + int(__import__("os").environ.get("RANK", 0)))', "start"),
    ranks("FSDP2 of the blocks alone", DISTRIBUTED, "fsdp2", "return fully_shard(LossOfTokens(model, loss_chunk), mesh=mesh)", "return LossOfTokens(model, loss_chunk)", "gradients", "parameters", "steps", strategy="fsdp2"),
    ranks("DDP under the name of FSDP2", DISTRIBUTED, "fsdp2", "kind = next(model.parameters()).device.type", "return ddp(model, loss_chunk)\n    kind = next(model.parameters()).device.type", "parts", strategy="fsdp2"),
    ranks("every rank's learning rate grows from the eleventh step on, in bfloat16", DISTRIBUTED, "train_step", "optimizer.step()", "model.calls = getattr(model, 'calls', 0) + 1\n    for group in optimizer.param_groups:\n        group['lr'] *= 1.05 if model.calls > 10 else 1\n    optimizer.step()", "parameters", dtype="bfloat16"),
    ranks("parameters hashed once and for ever", f"{WORKER}/ranks/step_recorder.py", "StepRecorder.after", "found = digest.parameters_digest(self._model.parameters(), self._case.digest_parts)", 'found = self.__dict__.setdefault("_first", digest.parameters_digest(self._model.parameters(), self._case.digest_parts))', "parameters"),
    ranks("a rank's own part hashed in the place of the whole", f"{WORKER}/digest.py", "parameters_digest", "tensor = whole(parameter.detach())", 'tensor = parameter.detach()\n        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor', "parameters", "start", strategy="fsdp2"),
    ranks("every rank's heartbeat is the first one's", f"{WORKER}/loop.py", "measured_steps", "beat |= recorder.figures(tokens)", "beat |= recorder.figures(tokens)\n            if case.is_launched:\n                beats = [beat]\n                torch.distributed.broadcast_object_list(beats)\n                beat = beats[0]", "data"),
)  # fmt: skip
