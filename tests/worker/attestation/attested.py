"""A small model, one recorded training step of it, and what the judge finds."""

import torch

from nsa_lib.subject import training
from nsa_lib.subject.config import ModelConfig, NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import attestation

LENGTH = 450
LR = 1e-3
CHUNK = 256
SIZES = dict(dim=48, heads=4, groups=2, d_k=16, d_v=16, l=16, d=8, l_sel=16, n_sel=5, w=48)


def config(*, layers=2, backend="masked", vocab=64, attention="nsa", **sizes):
    nsa = NSAConfig(**SIZES | sizes)
    return ModelConfig(nsa=nsa, layers=layers, vocab=vocab, backend=backend, attention=attention)


def trainee(model_config, *, dtype=torch.float32, seed=0, grad_checkpointing=True):
    """A model whose scores and logits are larger than those of a fresh one, and its optimizer."""
    torch.manual_seed(seed)
    model = TinyLM(model_config, grad_checkpointing=grad_checkpointing)
    with torch.no_grad():
        for block in model.blocks:
            for name, parameter in block.attention.named_parameters():
                if name.startswith(("query", "key", "phi_k")):
                    parameter.mul_(2)
    model = model.to(dtype)
    return model, training.make_optimizer(model, LR)


def recorded_step(model_config, *, batch=1, length=LENGTH, seed=0, step=None, steps=1, vocab=None, **options):
    """Return the record of the last of some steps, and its loss; `step` replaces `training.train_step`."""
    model, optimizer = trainee(model_config, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab or model_config.vocab, (batch, length + 1), generator=generator)
    sample = attestation.sample(model_config, batch=batch, length=length, seed=seed)
    take = step or training.train_step
    for _ in range(steps - 1):
        take(model, optimizer, tokens, loss_chunk=CHUNK)
    with attestation.recording(model, tokens, sample, optimizer) as record:
        result = take(model, optimizer, tokens, loss_chunk=CHUNK)
    return record, result.loss.item()


def judged(model_config, **options):
    record, loss = recorded_step(model_config, **options)
    return attestation.judge(record, loss, loss_chunk=CHUNK, rule=attestation.AdamW(lr=LR))


def wrong(found):
    """The names of all that is wrong."""
    return {name for area in found.wrong().values() for name in area}
