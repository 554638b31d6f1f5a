"""Mutants where nobody looked: one step of many, one factor in all rows, the start, and checks that check too little."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

TRAINING = "nsa_lib/subject/training.py"
MODEL = "nsa_lib/subject/model.py"
SLIDING = "nsa_lib/subject/attention/sliding.py"
WORKER = "nsa_lib/worker"
ATTESTATION = f"{WORKER}/attestation"

COUNTED = "made = int(next(iter(optimizer.state.values()))['step']) if optimizer.state else 0\n    "
ELSE_COUNT = "\n    else:\n        [state['step'].add_(1) for state in optimizer.state.values()]"

BLIND_SPOTS = (
    Mutant("no update in step 45 alone, and it is counted", TRAINING, "train_step", "optimizer.step()", COUNTED + "if made != 44:\n        optimizer.step()" + ELSE_COUNT, ("unrecorded",)),
    Mutant("no update in every fourth step, and it is counted", TRAINING, "train_step", "optimizer.step()", COUNTED + "if made % 4 != 2:\n        optimizer.step()" + ELSE_COUNT, ("unrecorded",)),
    Mutant("momentum forgotten in step 45 alone", TRAINING, "train_step", "optimizer.step()", COUNTED + "if made == 44:\n        [state['exp_avg'].zero_() for state in optimizer.state.values()]\n    optimizer.step()", ("unrecorded",)),
    Mutant("twice the learning rate in step 45 alone", TRAINING, "train_step", "optimizer.step()", COUNTED + "optimizer.param_groups[0]['lr'] *= {44: 2.0, 45: 0.5}.get(made, 1.0)\n    optimizer.step()", ("unrecorded",)),
    Mutant("the seed is ignored", f"{WORKER}/building.py", "built", "torch.manual_seed(case.seed)", "torch.manual_seed(0)", ("train_step",), {"seed": 7}),
    Mutant("a head that begins ten times as large", MODEL, "TinyLM.__init__", "nn.init.normal_(self.head.weight, std=0.02)", "nn.init.normal_(self.head.weight, std=0.2)", ("train_step",)),
    Mutant("MLPs that begin at zero", MODEL, "TinyLM.__init__", "self.norm = nn.LayerNorm(dim, bias=False)", "self.norm = nn.LayerNorm(dim, bias=False)\n        [nn.init.zeros_(block.mlp[2].weight) for block in self.blocks]", ("train_step",)),
    Mutant("the window's output 2 % too large in bfloat16", SLIDING, "sliding_attention", "return out[:, :, :length] if rest else out", "out = out[:, :, :length]\n    return 1.02 * out if out.dtype == torch.bfloat16 else out", ("attention",), {"dtype": "bfloat16"}),
    Mutant("a smaller epsilon of a norm in bfloat16", MODEL, "Block.__init__", "self.norm_attention = nn.LayerNorm(dim, bias=False)", "self.norm_attention = nn.LayerNorm(dim, bias=False, eps=1e-6)", ("blocks",), {"dtype": "bfloat16"}),
    Mutant("half the length is planned", "nsa_lib/runs/training_case.py", "training_case", '**pick("seq_len", "batch",', 'seq_len=values["seq_len"].value // 2,\n        **pick("batch",', ("evidence",)),
    Mutant("the meter sees nothing that is made without a graph", f"{WORKER}/storages.py", "StorageTracker.__torch_dispatch__", "if isinstance(result, torch.Tensor):", "if not torch.is_grad_enabled():\n            return result\n        if isinstance(result, torch.Tensor):", ("memory_order",)),
    Mutant("the meter sees no storage between 1 and 8 MiB", f"{WORKER}/storages.py", "StorageTracker._follow", "if nbytes == 0:", "if nbytes == 0 or 2**20 < nbytes < 2**23:", ("memory_order",)),
    Mutant("reserved is what is allocated, in whole segments", f"{WORKER}/memory.py", "CpuMeter._note", "self._allocator.reserved_peak_mib", "-(-self._peak_bytes // (2 * MIB)) * 2", ("memory_order",)),
    Mutant("an operator is counted thirty times at most", f"{WORKER}/memory.py", "CpuMeter.__torch_dispatch__", "self.operator_counts[func.name()] += 1", "self.operator_counts[func.name()] = min(30, self.operator_counts[func.name()] + 1)", ("operator_growth",), {"fault": "operator_growth"}),
    Mutant("a hash of nothing", f"{WORKER}/digest.py", "hash_of", "_bits_sum(tensor.detach()) for", "0 for", ("same_bits",)),
    Mutant("one step is taken in a second process", f"{WORKER}/repeated.py", "taken", "for step in range(1, case.steps + 1):", "for step in range(1, 2):", ("same_bits",)),
    Mutant("eight rows are judged", f"{ATTESTATION}/sample.py", "positions", "return tuple(sorted(chosen))", "return tuple(sorted(chosen))[:8]", ("attention", "choice")),
    Mutant("one step is taken again", f"{ATTESTATION}/replay.py", "span_of", "length = min(REPLAYED_STEPS, len(inner))", "length = min(1, len(inner))", ("unrecorded",)),
    Mutant("updates are followed at first alone", f"{ATTESTATION}/followed.py", "Followed.after", "if self.rule is None:", "if self.rule is None or step > 3:", ("unrecorded",)),
    Mutant("every model is timed as masked", f"{WORKER}/timing.py", "_model", "case.model.contestant(contestant.backend)", "case.model.contestant('dense' if contestant.backend == 'dense' else 'masked')", ("timing",), notebook="backend_contrast"),
    Mutant("packed is timed as gather", f"{WORKER}/timing.py", "_layer", "NSAttention(layer, contestant.backend)", "NSAttention(layer, contestant.backend.replace('packed', 'gather'))", ("timing",), notebook="backend_contrast"),
    Mutant("one step on fresh tokens", f"{WORKER}/fresh_tokens.py", "fresh_tokens", "range(FRESH_STEPS)", "range(1)", ("future",)),
    Mutant("fresh tokens of half the length", f"{WORKER}/fresh_tokens.py", "fresh_tokens", "tokens = torch.randint(vocab, shape, generator=generator).to(case.device)", "tokens = torch.randint(vocab, shape, generator=generator).to(case.device)[:, : case.seq_len // 2 + 1]", ("future", "steps")),
)  # fmt: skip
