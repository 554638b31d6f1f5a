"""Small wrong changes of the code on trial and of the instrument, each with the gates that must notice it.

A mutant is wrong in a way that a real mistake is: beyond a length, in one layer, for later batch entries, in the
backward alone, in one dtype. It is planted in a copy of the source, by the name of a function, and run through a real
notebook (`trial`). `make selftest` runs them beside the seeded faults.
"""

from __future__ import annotations

from tests.mutation.blind_spots import BLIND_SPOTS
from tests.mutation.mutant import Mutant
from tests.mutation.of_ranks import OF_THE_RANKS

SIZES = {"profile": "laptop", "layers": 2, "seq_len": 512, "vocab": 64}
"""Long enough that blocks are chosen by score and the window ends before the sequence does."""

HONEST = {
    "smoke": {**SIZES, "steps": 60},
    "backend_contrast": {**SIZES, "steps": 17, "rounds": 1, "seq_lens": [64, 128]},
    "backward_scaling": {**SIZES, "steps": 3, "seq_lens": [128, 512]},
    "several_gpus": {"profile": "laptop", "steps": 14},
    "preflight": SIZES,
}
"""What each notebook is given."""

QUICK = {"smoke": {"anomaly": False}}
"""What a mutant leaves out that its gates do not need; what did not run is INCOMPLETE and cannot hide a NO-GO."""

SUBJECT = "nsa_lib/subject"
ATTENTION = f"{SUBJECT}/attention"
WORKER = "nsa_lib/worker"


ROWS = ("attention", "choice", "gradients")
"""Gates that hold sampled rows of the measured steps against the reference."""


def sliding(name: str, old: str, new: str, **parameters: object) -> Mutant:
    """Return a mutant of the sliding branch."""
    return Mutant(name, f"{ATTENTION}/sliding.py", "sliding_attention", old, new, ROWS, parameters)


def selection(name: str, old: str, new: str, **parameters: object) -> Mutant:
    """Return a mutant of the choice of blocks."""
    return Mutant(name, f"{ATTENTION}/selection.py", "choose_blocks", old, new, ROWS, parameters)


def masked(name: str, old: str, new: str, **parameters: object) -> Mutant:
    """Return a mutant of the backend `masked`."""
    return Mutant(name, f"{ATTENTION}/backends/masked.py", "masked", old, new, ROWS, parameters)


def gather(name: str, function: str, old: str, new: str) -> Mutant:
    """Return a mutant of the backend `gather`."""
    return Mutant(name, f"{ATTENTION}/backends/gather.py", function, old, new, ROWS, {"backend": "gather"})


def training(name: str, function: str, old: str, new: str, *gates: str, **parameters: object) -> Mutant:
    """Return a mutant of the train step."""
    return Mutant(name, f"{SUBJECT}/training.py", function, old, new, gates, parameters)


def model(name: str, function: str, old: str, new: str, *gates: str, **parameters: object) -> Mutant:
    """Return a mutant of the model."""
    return Mutant(name, f"{SUBJECT}/model.py", function, old, new, gates, parameters)


LAST_ROW_DOUBLED = "torch.cat([out[:, :, :-1], 2 * out[:, :, -1:]], dim=2)"
BATCH_OF_TWO = {"batch": 2}

OF_THE_ATTENTION = (
    sliding("window a quarter as wide beyond 400 tokens", "if length <= w:", "w = w // 4 if length > 400 else w\n    if length <= w:"),
    sliding("window one token wider", "(batch, heads, length, _), share =", "w = w + 1\n    (batch, heads, length, _), share ="),
    sliding("window one token narrower", "(batch, heads, length, _), share =", "w = w - 1\n    (batch, heads, length, _), share ="),
    sliding("last rows of the window twice as large", "return out[:, :, :length] if rest else out",
            "out = out[:, :, :length]\n    return torch.cat([out[:, :, :-3], 2 * out[:, :, -3:]], dim=2)"),
    sliding("later batch entries read the first one's keys", "if length <= w:", "k = k[:1].expand_as(k)\n    if length <= w:", **BATCH_OF_TWO),
    sliding("values of the window detached", "if length <= w:", "v = v.detach() + 0 * v\n    if length <= w:"),
    sliding("keys' gradient of the window doubled", "if length <= w:", "k = 2 * k - k.detach()\n    if length <= w:"),
    selection("choice reversed beyond 400 tokens", "ranked = scores.detach()", "scores = -scores if scores.shape[2] > 400 else scores\n    ranked = scores.detach()"),
    selection("choice by the scores of the next query", "ranked = scores.detach()", "scores = scores.roll(-1, dims=2)\n    ranked = scores.detach()"),
    selection("one block fewer", "return F.pad(chosen", "chosen = chosen.masked_fill(torch.arange(chosen.shape[-1], device=chosen.device) == 1, 0).sort(dim=-1).values\n    return F.pad(chosen"),
    selection("ties to the higher block, scores rounded", "ranked = scores.detach()", "scores = (8 * scores).round() / 8\n    ranked = scores.detach()"),
    selection("all groups choose as the first", "ranked = scores.detach()", "scores = scores[:, :1].expand_as(scores)\n    ranked = scores.detach()"),
    Mutant("scores of one head of each batch only", f"{ATTENTION}/selection.py", "block_scores", "return per_group @", "per_group = per_group[:1].expand_as(per_group)\n    return per_group @", ROWS, BATCH_OF_TWO),
    masked("selected branch scaled by 1.1", "scale=scale)", "scale=1.1 * scale)"),
    masked("selected branch zero in the last row", "return out.view(batch, heads, length, -1)",
           "out = out.view(batch, heads, length, -1)\n        return torch.cat([out[:, :, :-1], 0 * out[:, :, -1:]], dim=2)"),
    masked("heads of a group swapped", "return out.view(batch, heads, length, -1)", "return out.view(batch, heads, length, -1).flip(1)"),
    masked("wrong in bfloat16 alone", "scale=scale)", "scale=(1.2 if q.dtype == torch.bfloat16 else 1.0) * scale)", dtype="bfloat16"),
    masked("zeros for the second batch entry", "return out.view(batch, heads, length, -1)",
           "out = out.view(batch, heads, length, -1)\n        return torch.cat([out[:1], 0 * out[1:]])", **BATCH_OF_TWO),
    Mutant("masked reads one token of the future", f"{ATTENTION}/backends/masked.py", "selection_bias", "token > token[:, None]", "token > token[:, None] + 1", ROWS),
    gather("backward of gather without the softmax's sum", "_Gather.backward", "(d_p - (p * d_p).sum(dim=-1, keepdim=True))", "d_p"),
    gather("values' gradient of gather halved in the last chunk", "_Gather.backward", "_scatter_add(d_v, source_rows, p.mT @ d_rows)", "_scatter_add(d_v, source_rows, p.mT @ d_rows * (0.5 if rows.start else 1.0))"),
    gather("gather forgets the scale", "_probabilities", "(q @ k.mT * scale)", "(q @ k.mT)"),
    Mutant("packed calls masked", f"{ATTENTION}/backends/packed.py", "packed", 'with record_function(f"{ROUTE_PREFIX}packed"):',
           'from nsa_lib.subject.attention.backends.masked import masked\n\n    if q.shape[2] > 64:\n        return masked(q, k, v, block_indices, l_sel=l_sel, scale=scale)\n    with record_function(f"{ROUTE_PREFIX}packed"):',
           ("route",), {"backend": "packed"}),
    Mutant("compressed blocks seen one token early", f"{ATTENTION}/compression.py", "visibility_bias", "ends > queries[:, None]", "ends > queries[:, None] + 1", ROWS),
    Mutant("compressed branch without its scale", f"{ATTENTION}/compression.py", "compressed_probabilities", "alpha=width**-0.5 if scale is None else scale", "alpha=1.0", ROWS),
    Mutant("compressed values reversed", f"{ATTENTION}/compression.py", "mix_compressed", "return (p @ v_cmp)", "return (p @ v_cmp.flip(2))", ROWS),
    Mutant("rotation by half the position beyond 300", f"{ATTENTION}/rope.py", "rotation", "positions = torch.arange(length, dtype=dtype, device=device) * stride + offset",
           "positions = torch.arange(length, dtype=dtype, device=device) * stride + offset\n    positions = torch.where(positions > 300, positions / 2, positions)", ROWS),
    Mutant("branch gates of the first branch for all", f"{ATTENTION}/module.py", "NSAttention.branch_by_branch", 'gates = parts["branch_gates"].unbind(dim=-1)', 'gates = parts["branch_gates"][..., :1].expand_as(parts["branch_gates"]).unbind(dim=-1)', ROWS),
)  # fmt: skip

OF_THE_MODEL = (
    model("checkpointing forgotten", "TinyLM.hidden", "self.run_block(block, x, self.grad_checkpointing)", "self.run_block(block, x, False)", "grad_checkpointing"),
    model("the last layer in place of the second", "TinyLM.hidden", "self.run_block(block, x, self.grad_checkpointing)", "self.run_block(self.blocks[-1], x, self.grad_checkpointing)", "steps", "update"),
    model("one layer never learns", "TinyLM.hidden", "x = self.run_block(block, x, self.grad_checkpointing)", "x = self.run_block(block, x, self.grad_checkpointing) if block is not self.blocks[1] else self.run_block(block, x, self.grad_checkpointing).detach() + x - x.detach()", "steps", "update", "train_step"),
    model("a token sees the one after it", "TinyLM.hidden", "x = self.embedding(tokens)", "x = self.embedding(tokens)\n        x = x + 0.5 * x.roll(-1, dims=1)", "future", "fresh_tokens"),
    model("sequences of a batch are mixed", "TinyLM.hidden", "return self.norm(x)", "return self.norm(x + 0.2 * x.flip(0))", "future", **BATCH_OF_TWO),
)  # fmt: skip

OF_THE_TRAINING = (
    training("half the tokens in the loss", "next_token_loss", "model.hidden(tokens[:, :-1]), tokens[:, 1:]", "model.hidden(tokens[:, :-1])[:, ::2], tokens[:, 1::2]", "train_step"),
    training("loss of the first chunk alone", "_ChunkedCrossEntropy.forward", "(lse - logits.gather(1, targets)).sum()", "(lse - logits.gather(1, targets))[: chunk // 2].sum()", "train_step"),
    training("labels not shifted", "next_token_loss", "tokens[:, 1:]", "tokens[:, :-1]", "train_step", "fresh_tokens"),
    training("gradient of the loss halved", "_ChunkedCrossEntropy.backward", "scale = d_loss / ctx.count", "scale = 0.5 * d_loss / ctx.count", "train_step"),
    training("the head gets no gradient of the last chunk", "_ChunkedCrossEntropy.forward", "d_head.addmm_(d_logits.mT, rows)", "d_head.addmm_(d_logits.mT, rows * (start + chunk < len(labels) or start == 0))", "train_step", seq_len=1024),
    training("one layer never updated", "make_optimizer", "model.parameters(), lr=lr", '[p for n, p in model.named_parameters() if not n.startswith("blocks.1.attention")], lr=lr', "update", "train_step"),
    training("learning rate ten times as large", "make_optimizer", "lr=lr, fused=True", "lr=10 * lr, fused=True", "update", "train_step"),
    training("SGD in the place of AdamW", "make_optimizer", "torch.optim.AdamW(model.parameters(), lr=lr, fused=True)", "torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)", "update", "train_step"),
    training("every second update left out", "train_step", "optimizer.step()", "optimizer.calls = getattr(optimizer, 'calls', 0) + 1\n    if optimizer.calls % 2:\n        optimizer.step()", "update", "train_step"),
    training("gradients of two steps together", "backward_step", "model.zero_grad(set_to_none=True)", "pass", "update", "train_step"),
)  # fmt: skip

COUNTED = "optimizer.calls = getattr(optimizer, 'calls', 0) + 1\n    "
BLOCK_CALL = "x = self.run_block(block, x, self.grad_checkpointing)"

ONLY_WHERE_NOBODY_LOOKS = (
    Mutant("half the window's values where nobody observes", f"{ATTENTION}/module.py", "NSAttention.forward", "parts = self.project(x)",
           'parts = self.project(x)\n        if self.observe is None:\n            parts["value_win"] = 0.5 * parts["value_win"]', ("unrecorded",)),
    model("last layer left out where no hook is set", "TinyLM.hidden", BLOCK_CALL,
          "if block is self.blocks[-1] and not self.norm._forward_hooks:\n                x = x + 0 * self.run_block(block, x, self.grad_checkpointing)\n            else:\n                x = self.run_block(block, x, self.grad_checkpointing)", "unrecorded"),
    training("other tokens in all steps but the first, 30th and 60th", "backward_step", "model.zero_grad(set_to_none=True)",
             "model.calls = getattr(model, 'calls', 0) + 1\n    tokens = tokens if model.calls in (1, 30, 60) else tokens.roll(1, dims=1)\n    model.zero_grad(set_to_none=True)", "train_step", "unrecorded"),
    training("momentum forgotten every seventh step", "train_step", "optimizer.step()",
             COUNTED + "if optimizer.calls % 7 == 0:\n        [state['exp_avg'].zero_() for state in optimizer.state.values()]\n    optimizer.step()", "train_step", "unrecorded"),
    training("optimizer state begun anew every 25 steps", "train_step", "optimizer.step()", COUNTED + "if optimizer.calls % 25 == 0:\n        optimizer.state.clear()\n    optimizer.step()", "train_step"),
    training("no update in every fifth step", "train_step", "optimizer.step()", COUNTED + "if optimizer.calls % 5 != 3:\n        optimizer.step()", "unrecorded", "train_step"),
)  # fmt: skip

BETWEEN_THE_LAYERS = (
    model("gradient into the last block halved for later batch entries", "TinyLM.hidden", BLOCK_CALL,
          "x = x if block is not self.blocks[-1] else torch.cat([x[:1], 0.5 * x[1:] + 0.5 * x[1:].detach()])\n            " + BLOCK_CALL, "blocks", **BATCH_OF_TWO),
    model("values of the last layer get nine tenths of their gradient", "TinyLM.__init__", "self.norm = nn.LayerNorm(dim, bias=False)",
          "self.norm = nn.LayerNorm(dim, bias=False)\n        self.blocks[-1].attention.value_win.weight.register_hook(lambda gradient: 0.9 * gradient)", *ROWS),
    model("queries of two layers are one weight", "TinyLM.__init__", "self.norm = nn.LayerNorm(dim, bias=False)",
          "self.norm = nn.LayerNorm(dim, bias=False)\n        self.blocks[1].attention.query = self.blocks[0].attention.query", *ROWS),
    model("the MLP reads bfloat16", "Block.forward", "self.mlp(self.norm_mlp(x))", "self.mlp(self.norm_mlp(x).bfloat16().to(x.dtype))", "blocks"),
    model("no residual in the last rows", "Block.forward", "x = x + self.attention(self.norm_attention(x))",
          "y = self.attention(self.norm_attention(x))\n        x = torch.cat([x[:, :-3] + y[:, :-3], y[:, -3:]], dim=1)", "blocks"),
    model("another epsilon in a norm", "Block.__init__", "self.norm_mlp = nn.LayerNorm(dim, bias=False)", "self.norm_mlp = nn.LayerNorm(dim, bias=False, eps=1e-3)", "blocks"),
    model("no gradient of the MLP's input beyond 400 tokens", "Block.forward", "self.mlp(self.norm_mlp(x))", "self.mlp(self.norm_mlp(torch.cat([x[:, :400], x[:, 400:].detach()], dim=1)))", "blocks"),
    model("half of the embedding's gradient", "TinyLM.hidden", "x = self.embedding(tokens)", "x = self.embedding(tokens)\n        x = 0.5 * x + 0.5 * x.detach()", "blocks"),
    Mutant("a branch gate of the first head detached", f"{ATTENTION}/module.py", "NSAttention.project", 'gates = parts["branch_gates"].sigmoid()',
           'gates = parts["branch_gates"].sigmoid()\n        gates = torch.cat([gates[..., :1].detach(), gates[..., 1:]], dim=-1)', ROWS),
    Mutant("half of the gradient through compressed values", f"{ATTENTION}/module.py", "NSAttention.branch_by_branch", 'compress(parts["value_cmp"], self.phi_v',
           'compress(0.5 * parts["value_cmp"] + 0.5 * parts["value_cmp"].detach(), self.phi_v', ROWS),
    sliding("window one token narrower beyond 400 tokens", "if length <= w:", "w = w - 1 if length > 400 else w\n    if length <= w:"),
    Mutant("rotation off by a block beyond 300", f"{ATTENTION}/rope.py", "rotation", "positions = torch.arange(length, dtype=dtype, device=device) * stride + offset",
           "positions = torch.arange(length, dtype=dtype, device=device) * stride + offset\n    positions = torch.where(positions > 300, positions + 64, positions)", ROWS),
)  # fmt: skip

OF_THE_UPDATE = (
    training("loss scaled after the fact", "train_step", "return result", "return StepResult(0.9 * result.loss, result.grad_norm)", "train_step"),
    training("weight decay forgotten", "make_optimizer", "lr=lr, fused=True", "lr=lr, fused=True, weight_decay=0.0", "train_step"),
    training("another beta", "make_optimizer", "lr=lr, fused=True", "lr=lr, fused=True, betas=(0.9, 0.95)", "train_step"),
    training("another epsilon of the update", "make_optimizer", "lr=lr, fused=True", "lr=lr, fused=True, eps=1e-6", "train_step"),
    training("gradients clipped", "train_step", "optimizer.step()", "torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)\n    optimizer.step()", *ROWS, "train_step"),
    training("learning rate halved on the way", "train_step", "optimizer.step()", COUNTED + "optimizer.param_groups[0]['lr'] *= 0.5 if optimizer.calls == 20 else 1.0\n    optimizer.step()", "train_step"),
)  # fmt: skip

OF_THE_INSTRUMENT = (
    Mutant("the meter halves what is allocated", f"{WORKER}/memory.py", "CpuMeter._note", "self._peak_bytes / MIB", "self._peak_bytes / MIB / 2", ("memory_order", "peak_alloc")),
    Mutant("the last steps are not recorded", f"{WORKER}/loop.py", "*", "for step in range(1, case.steps + 1):", "for step in range(1, case.steps - 1):", ("steps",)),
    Mutant("losses are recorded as they were at first", f"{WORKER}/loop.py", "_measured_step", '{"loss": loss,', '{"loss": 5.0,', ("loss_falls",)),
    Mutant("anomaly detection never on", f"{WORKER}/loop.py", "*", "set_detect_anomaly(case.detect_anomaly)", "set_detect_anomaly(False)", ("anomaly",), {"anomaly": True}),
    Mutant("the meter tells its first peak for ever", f"{WORKER}/memory.py", "CpuMeter._note", "self._peak_bytes / MIB", 'self.__dict__.setdefault("_first", self._peak_bytes / MIB)', ("memory_order",)),
    Mutant("the meter forgets the backward", f"{WORKER}/memory.py", "CpuMeter._note", "self._peaks.note(self._peak_bytes / MIB", "self._peaks.note(0.0 if phase == 'backward' else self._peak_bytes / MIB", ("memory_order", "steps")),
    Mutant("every heartbeat twice", "nsa_lib/contract/heartbeat.py", "Heartbeat.beat", "written = os.write(self._descriptor, text)", "os.write(self._descriptor, text)\n        written = os.write(self._descriptor, text)", ("steps",)),
    Mutant("the last heartbeats repeat a step", "nsa_lib/contract/heartbeat.py", "Heartbeat.beat", '"step": step,', '"step": step and min(step, 50),', ("steps",)),
    Mutant("the simulation ignores the allocator setting", f"{WORKER}/devices.py", "Cpu.meter", "CpuMeter(alloc_conf,", 'CpuMeter("",', ("allocator",)),
    Mutant("a case gets no allocator setting", "nsa_lib/runs/environment.py", "case_environment", "| inherited | settings", "| inherited", ("allocator",)),
)  # fmt: skip

OF_AN_ATTACK = (
    training("rows in the middle of every weight never updated", "train_step", "optimizer.step()",
             "kept = {p: p.detach()[3 * len(p) // 8 : 3 * len(p) // 8 + 3].clone() for p in model.parameters() if p.dim() == 2}\n    optimizer.step()\n    for p, rows in kept.items():\n        p.data[3 * len(p) // 8 : 3 * len(p) // 8 + 3] = rows", "train_step"),
    training("second moment of one row in eight kept", "train_step", "optimizer.step()",
             "kept = {p: optimizer.state[p]['exp_avg_sq'][3::8].clone() for p in optimizer.state if p.dim() == 2}\n    optimizer.step()\n    for p, rows in kept.items():\n        optimizer.state[p]['exp_avg_sq'][3::8] = rows", "train_step"),
    training("learning rate three percent too high in bfloat16", "make_optimizer", "lr=lr, fused=True", "lr=1.03 * lr, fused=True", "train_step", dtype="bfloat16"),
    training("gradient norm without the last parameter", "grad_norm", "torch._foreach_norm(list(gradients.values()))", "torch._foreach_norm(list(gradients.values())[:-1])", "train_step"),
    training("the head's last tokens get no gradient", "_ChunkedCrossEntropy.backward", "d_head * scale.to(d_head.dtype)", "torch.cat([d_head[:-4], 0 * d_head[-4:]]) * scale.to(d_head.dtype)", "train_step", vocab=4096, dtype="bfloat16"),
    training("forward ends after backward", "backward_step", 'mark("forward")\n    loss.backward()', 'loss.backward()\n    mark("forward")', "steps"),
    training("phases swapped", "backward_step", 'mark("forward")\n    loss.backward()\n    mark("backward")', 'mark("backward")\n    loss.backward()\n    mark("forward")', "steps"),
    Mutant("positions in bfloat16", f"{ATTENTION}/rope.py", "rotation", "positions = torch.arange(length, dtype=dtype, device=device) * stride + offset",
           "positions = (torch.arange(length, dtype=dtype, device=device) * stride + offset).bfloat16().to(dtype)", ROWS, {"dtype": "bfloat16"}),
    Mutant("last compressed block lost at odd lengths", f"{ATTENTION}/compression.py", "compress", "return phi(x.unfold(2, l, d).transpose(-1, -2))",
           "out = phi(x.unfold(2, l, d).transpose(-1, -2))\n    return torch.cat([out[:, :, :-1], 0 * out[:, :, -1:]], dim=2) if x.shape[2] % 2 else out", ROWS, {"seq_len": 509}),
    model("an inner layer adds a hundredth less", "TinyLM.hidden", BLOCK_CALL, "y = x\n            " + BLOCK_CALL + "\n            x = x if block is not self.blocks[1] else y + 0.99 * (x - y)", "blocks", layers=4),
    Mutant("the meter does not see storages above a MiB", f"{WORKER}/storages.py", "StorageTracker._follow", "if nbytes == 0:", "if nbytes == 0 or nbytes > 2**20:", ("memory_order",)),
    Mutant("a MiB of a million bytes", "nsa_lib/contract/allocator.py", "*", "MIB = 2**20", "MIB = 10**6", ("memory_order",)),
    Mutant("step times in seconds", f"{WORKER}/loop.py", "_measured_step", '"step_ms": 1000 * step_s', '"step_ms": step_s', ("clock",)),
    Mutant("one step has no time", f"{WORKER}/loop.py", "_measured_step", '"step_ms": 1000 * step_s', '"step_ms": float("nan")', ("clock",)),
    Mutant("tokens a second of one sequence", f"{WORKER}/loop.py", "_measured_step", "case.batch * case.seq_len / step_s", "case.seq_len / step_s", ("clock",), BATCH_OF_TWO),
    Mutant("no layer is judged", f"{WORKER}/attestation/witness.py", "Witness._sample", "judged = step in (1, self._case.steps) or self._captures(step)", "judged = False", ROWS),
    Mutant("gradients of no layer are judged", f"{WORKER}/attestation/sample.py", "sample", "return Sample(layers, gradient_layers,", "return Sample(layers, (),", ("gradients",)),
    Mutant("only the last step is recorded", f"{WORKER}/attestation/witness.py", "Witness.__init__", "steps = {1, _inner_step(case), case.steps}", "steps = {case.steps}", ROWS),
    Mutant("no step is taken again", f"{WORKER}/attestation/replay.py", "span_of", "inner = range(2, steps)", "inner = range(2, 2)", ("unrecorded",)),
)  # fmt: skip
"""Those that lived when they were first tried, or were caught by little, and some of other kinds beside them."""

ATTACKED_AGAIN = (
    training("AMSGrad in the place of AdamW", "make_optimizer", "lr=lr, fused=True", "lr=lr, fused=True, amsgrad=True", "train_step"),
    training("no weight decay of what is no matrix", "make_optimizer", "torch.optim.AdamW(model.parameters(), lr=lr, fused=True)",
             "torch.optim.AdamW([{'params': [p for p in model.parameters() if p.dim() > 1]}, {'params': [p for p in model.parameters() if p.dim() < 2], 'weight_decay': 0.0}], lr=lr, fused=True)", "train_step"),
    training("a padded token is counted", "_ChunkedCrossEntropy.forward", "ctx.count = len(labels)", "ctx.count = len(labels) + 1", "train_step"),
    training("every fourth step on other tokens", "backward_step", "model.zero_grad(set_to_none=True)",
             "model.calls = getattr(model, 'calls', 0) + 1\n    tokens = tokens.roll(1, dims=1) if model.calls % 4 == 2 else tokens\n    model.zero_grad(set_to_none=True)", "train_step", "unrecorded"),
    training("labels smoothed by a hundredth", "_ChunkedCrossEntropy.forward", "-torch.ones_like(lse)).to(head.dtype)", "-0.99 * torch.ones_like(lse)).to(head.dtype)", "train_step"),
    training("gradient norm squared", "grad_norm", "return torch.linalg.vector_norm(norms.to(torch.promote_types(norms.dtype, torch.float32)))",
             "return torch.linalg.vector_norm(norms.to(torch.promote_types(norms.dtype, torch.float32))) ** 2", "train_step"),
    sliding("window one token narrower at odd lengths", "if length <= w:", "w = w - length % 2\n    if length <= w:", seq_len=509),
    sliding("values of the window get the keys' gradient too", "if length <= w:", "k, v = k + (v - v.detach()), v\n    if length <= w:"),
    masked("last of three sequences wrong", "return out.view(batch, heads, length, -1)",
           "out = out.view(batch, heads, length, -1)\n        return torch.cat([out[:2], 1.05 * out[2:]])", batch=3),
    masked("keys' gradient from the first head of each group alone", "k, v = (x.reshape(batch * groups, 1, length, -1).expand(-1, heads // groups, -1, -1) for x in (k, v))",
           "k, v = (x.reshape(batch * groups, 1, length, -1).expand(-1, heads // groups, -1, -1) for x in (k, v))\n        k = torch.cat([k[:, :1], k[:, 1:].detach()], dim=1)", groups=2),
    Mutant("compressed keys rotated at the start of their block", f"{ATTENTION}/module.py", "NSAttention.compressed_keys", "offset=c.l - 1", "offset=0", ROWS),
    Mutant("compressed keys not rotated", f"{ATTENTION}/module.py", "NSAttention.compressed_keys", "return self._rotate(k_cmp, stride=c.d, offset=c.l - 1)", "return k_cmp", ROWS),
    Mutant("branch gates that sum to one", f"{ATTENTION}/module.py", "NSAttention.project", 'gates = parts["branch_gates"].sigmoid()',
           'gates = parts["branch_gates"].unflatten(-1, (c.heads, len(c.branches))).softmax(dim=-1).flatten(-2)', ROWS),
    Mutant("keys of the window in the place of the selected ones", f"{ATTENTION}/module.py", "NSAttention.branch_by_branch", 'parts["query"], parts["key_slc"], parts["value_slc"]', 'parts["query"], parts["key_win"], parts["value_slc"]', ROWS),
    Mutant("compressed probabilities in bfloat16", f"{ATTENTION}/compression.py", "compressed_probabilities", "dtype = torch.promote_types(q.dtype, torch.float32)", "dtype = q.dtype", ROWS, {"dtype": "bfloat16"}),
    Mutant("a block of the last tile lost by packed", f"{ATTENTION}/backends/packed.py", "_forward", "lse = tiles.pairs(lse, share).masked_fill_(tiles.padding[..., None, None], -torch.inf)",
           "lse = tiles.pairs(lse, share).masked_fill_(tiles.padding[..., None, None], -torch.inf)\n    lse[:, -5:, 1] = -torch.inf", ROWS, {"backend": "packed"}),
    Mutant("gradients of packed's last block lost", f"{ATTENTION}/backends/packed.py", "_backward", "d_k.flatten(1, 2)[:, :length]", "F.pad(d_k.flatten(1, 2)[:, : length - 8], (0, 0, 0, 8))", ROWS, {"backend": "packed"}),
    model("half the window in an inner layer of six", "TinyLM.__init__", "self.norm = nn.LayerNorm(dim, bias=False)",
          "self.norm = nn.LayerNorm(dim, bias=False)\n        from dataclasses import replace\n\n        self.blocks[2].attention.config = replace(config.nsa, w=config.nsa.w // 2)", *ROWS, layers=6, seq_len=256),
    model("an MLP of half the width", "Block.__init__", "nn.Linear(dim, 4 * dim, bias=False), nn.SiLU(), nn.Linear(4 * dim, dim, bias=False)",
          "nn.Linear(dim, 2 * dim, bias=False), nn.SiLU(), nn.Linear(2 * dim, dim, bias=False)", "train_step"),
    model("a layer more than asked for", "TinyLM.__init__", "for _ in range(config.layers)", "for _ in range(config.layers + 1)", "train_step"),
    model("heads half as wide", "Block.__init__", "super().__init__()", "super().__init__()\n        from dataclasses import replace\n\n        config = replace(config, nsa=replace(config.nsa, d_k=config.nsa.d_k // 2))", "train_step"),
    model("another epsilon in the final norm", "TinyLM.__init__", "self.norm = nn.LayerNorm(dim, bias=False)", "self.norm = nn.LayerNorm(dim, bias=False, eps=1e-6)", "blocks", "train_step"),
    model("RMSNorm in the place of LayerNorm", "Block.__init__", "self.norm_mlp = nn.LayerNorm(dim, bias=False)", "self.norm_mlp = nn.RMSNorm(dim)", "blocks"),
    model("GELU in the place of SiLU", "Block.__init__", "nn.SiLU()", "nn.GELU()", "blocks"),
    model("dropout of a thousandth", "Block.forward", "return x + self.mlp(self.norm_mlp(x))", "return x + nn.functional.dropout(self.mlp(self.norm_mlp(x)), 1e-3)", "blocks", "unrecorded", "same_bits"),
    model("head and embedding are one weight", "TinyLM.__init__", "nn.init.normal_(self.head.weight, std=0.02)", "nn.init.normal_(self.head.weight, std=0.02)\n        self.head.weight = self.embedding.weight", "blocks", "train_step"),
    model("the first layer alone is checkpointed", "TinyLM.hidden", "self.run_block(block, x, self.grad_checkpointing)", "self.run_block(block, x, self.grad_checkpointing and block is self.blocks[0])", "grad_checkpointing"),
    model("the mean of the sequence is taken away", "TinyLM.hidden", "return self.norm(x)", "return self.norm(x - 0.05 * x.mean(dim=1, keepdim=True))", "future", "blocks"),
    model("the embedding is shifted by its norm", "TinyLM.hidden", "x = self.embedding(tokens)", "x = self.embedding(tokens)\n        x = x + 1e-3 * self.norm(x)", "blocks"),
    Mutant("reserved is what is allocated", f"{WORKER}/memory.py", "CpuMeter._note", "self._allocator.reserved_peak_mib", "self._peak_bytes / MIB", ("memory_order",)),
    Mutant("late operators are the early ones", f"{WORKER}/loop.py", "measured_steps", '"late": windows.late', '"late": windows.early', ("operator_growth",), {"fault": "operator_growth"}),
    Mutant("losses are a running mean", f"{WORKER}/loop.py", "_measured_step", "loss, norm = result.loss.item(), result.grad_norm.item()",
           'loss, norm = result.loss.item(), result.grad_norm.item()\n    loss = stepped.__dict__["mean"] = 0.5 * loss + 0.5 * stepped.__dict__.get("mean", loss)', ("train_step",)),
    Mutant("step times three tenths too small", f"{WORKER}/loop.py", "_measured_step", "step_s = time.perf_counter() - began", "step_s = 0.7 * (time.perf_counter() - began)", ("clock",)),
    Mutant("twice the learning rate of the case", f"{WORKER}/loop.py", "train", "training.make_optimizer(model, case.lr)", "training.make_optimizer(model, 2 * case.lr)", ("train_step",)),
    Mutant("half the sequence is trained on", f"{WORKER}/loop.py", "measured_steps", "own_sequences(next(batches))", "own_sequences(next(batches))[:, : case.seq_len // 2 + 1]", (*ROWS, "train_step", "blocks")),
    Mutant("one sequence of two is trained on", f"{WORKER}/loop.py", "measured_steps", "own_sequences(next(batches))", "own_sequences(next(batches))[:1]", (*ROWS, "train_step", "blocks"), BATCH_OF_TWO),
    Mutant("the model stays in float32", f"{WORKER}/building.py", "built", "in_dtype(model, getattr(torch, case.dtype))", "model", ("executed",), {"dtype": "bfloat16"}),
    Mutant("results of two cases swapped", "nsa_lib/runs/recorded.py", "_cases", "result = _read_json(path)",
           'other = {"model_masked": "model_gather", "model_gather": "model_masked"}.get(case_id, case_id)\n        result = _read_json(folder / "cases" / other / "result.json")', ("evidence", "route"), notebook="backend_contrast"),
    Mutant("gather is said to take half its time", f"{WORKER}/timing.py", "run_timing", "phases_ms, watched = _watched(take) if number == 0 else (take(), {})",
           'phases_ms, watched = _watched(take) if number == 0 else (take(), {})\n                phases_ms = {name: (0.5 if contestant.backend == "gather" else 1.0) * ms for name, ms in phases_ms.items()}', ("timing",), notebook="backend_contrast"),
)  # fmt: skip
"""The second attack: what was prepared at the first one and not run, and others."""

OF_THE_EVIDENCE = (
    Mutant("tokens of a vocabulary of two", f"{WORKER}/data.py", "_repeated", "yield tokens", "yield tokens % 2", ("train_step",)),
    Mutant("the second sequence is the first", f"{WORKER}/data.py", "_repeated", "yield tokens", "yield tokens[:1].expand_as(tokens).contiguous()", ("train_step",), BATCH_OF_TWO),
    Mutant("anomaly detection lets NaN pass", f"{WORKER}/loop.py", "*", "set_detect_anomaly(case.detect_anomaly)", "set_detect_anomaly(case.detect_anomaly, check_nan=False)", ("anomaly",), {"anomaly": True}),
    training("anomaly detection ends with forward", "backward_step", 'mark("forward")', 'mark("forward")\n    torch.autograd.set_detect_anomaly(False)', "anomaly", anomaly=True),
    Mutant("a preflight of a quarter of the window beyond 400 tokens", f"{ATTENTION}/sliding.py", "sliding_attention", "if length <= w:",
           "w = w // 4 if length > 400 else w\n    if length <= w:", ("attention_full",), {}, "preflight"),
    Mutant("a preflight of keys whose gradient is doubled beyond 400 tokens", f"{ATTENTION}/sliding.py", "sliding_attention", "if length <= w:",
           "k = 2 * k - k.detach() if length > 400 else k\n    if length <= w:", ("gradients_full",), {}, "preflight"),
    Mutant("edits of tokens that nobody is shown", f"{WORKER}/fresh_tokens.py", "_edits", "model.hidden(edited)", "model.hidden(tokens)", ("future",)),
)  # fmt: skip
"""What would have shown nothing, had anything been wrong."""

MUTANTS = (
    *OF_THE_ATTENTION, *OF_THE_MODEL, *OF_THE_TRAINING, *OF_THE_INSTRUMENT,
    *ONLY_WHERE_NOBODY_LOOKS, *BETWEEN_THE_LAYERS, *OF_THE_UPDATE, *OF_AN_ATTACK, *ATTACKED_AGAIN,
    *OF_THE_EVIDENCE,
    *BLIND_SPOTS,
    *OF_THE_RANKS,
)  # fmt: skip
