"""Two real ranks over gloo, started by torchrun, that count the bytes of what they hold; rank 0 prints them as JSON."""

import json

import torch
from torch import distributed

from nsa_lib.subject import training
from nsa_lib.subject.distributed import STRATEGIES, own_part, train_step
from nsa_lib.subject.model import make_model
from tests.worker.ranks.cases import PAIR


def nbytes(tensors):
    """Return the bytes of tensors' storages; several may lie in one."""
    storages = [own_part(tensor).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def count(strategy):
    """Take two steps and return bytes by kind; `gathered` is what the parameters of a block take while it runs."""
    model = make_model(PAIR.model, grad_checkpointing=True)
    loss_of = STRATEGIES[strategy](model)
    optimizer = training.make_optimizer(model, 1e-3)
    gathered = []
    inner = next(iter(model.blocks[0].children()))
    inner.register_forward_pre_hook(
        lambda *_: gathered.append(sum(p.numel() * p.element_size() for p in model.blocks[0].parameters()))
    )
    for _ in range(2):
        train_step(loss_of, model, optimizer, torch.zeros(1, PAIR.seq_len + 1, dtype=torch.int64))
    states = [value for state in optimizer.state.values() for value in state.values()]
    found = {"parameters": nbytes(model.parameters()), "optimizer": nbytes(states), "gathered": max(gathered)}
    if strategy == "ddp":
        found["gradients"] = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
        sizes = loss_of._get_ddp_logging_data()["bucket_sizes"]
        return {**found, "buckets": [int(size) for size in str(sizes).split(",")]}
    return {**found, "gradients": nbytes([p.grad for p in model.parameters()])}


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    counted = {strategy: count(strategy) for strategy in ("ddp", "fsdp2")}
    if distributed.get_rank() == 0:
        print(json.dumps(counted), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
