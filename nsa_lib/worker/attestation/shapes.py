"""The parameters that a model must have, from the sizes that were asked for.

The judge takes nothing from the model's own word: a layer that was made with half the window or a quarter of the MLP
says so of itself, and agrees with itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from nsa_lib.subject.config import ModelConfig, NSAConfig

Shapes = Mapping[str, tuple[int, ...]]

MLP_WIDTH = 4
"""Times the width of the model."""


def wrong_shapes(found: Shapes, asked: ModelConfig) -> dict[str, str]:
    """Return the parameters that are not those asked for, by name, in a sentence; none of a user's model is known."""
    if asked.brings == "model":
        return {}
    expected = asked_shapes(asked)
    if asked.attention != "nsa":  # those of the yardstick, and of what a user brings, are their own
        found = {name: shape for name, shape in found.items() if ".attention." not in name}
    wrong = {name: "it is not there" for name in expected if name not in found}
    for name, shape in found.items():
        if name not in expected:
            wrong[name] = "nobody asked for it"
        elif tuple(shape) != expected[name]:
            wrong[name] = f"its shape is {list(shape)}, asked for is {list(expected[name])}"
    return wrong


def asked_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of a TinyLM by name; those of its attention if that is NSA."""
    dim = model.nsa.dim
    block = {
        "norm_attention.weight": (dim,),
        "norm_mlp.weight": (dim,),
        "mlp.0.weight": (MLP_WIDTH * dim, dim),
        "mlp.2.weight": (dim, MLP_WIDTH * dim),
    }
    if model.attention == "nsa":
        block |= {f"attention.{name}": shape for name, shape in _attention(model.nsa).items()}
    ends = {"embedding.weight": (model.vocab, dim), "norm.weight": (dim,), "head.weight": (model.vocab, dim)}
    return ends | {f"blocks.{i}.{name}": shape for i in range(model.layers) for name, shape in block.items()}


def _attention(c: NSAConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer of NSA: without the compressed branch, the selected one still compresses keys."""
    compresses = ("cmp",) if "slc" in c.branches and "cmp" not in c.branches else ()
    found = {"query.weight": (c.heads * c.d_k, c.dim), "out.weight": (c.dim, c.heads * c.d_v)}
    found["branch_gates.weight"] = (c.heads * len(c.branches), c.dim)
    found |= {f"key_{branch}.weight": (c.groups * c.d_k, c.dim) for branch in (*c.branches, *compresses)}
    found |= {f"value_{branch}.weight": (c.groups * c.d_v, c.dim) for branch in c.branches}
    if c.phi == "mlp" and {"cmp", "slc"} & set(c.branches):
        found |= _phi("phi_k", c.l, c.d_k) | (_phi("phi_v", c.l, c.d_v) if "cmp" in c.branches else {})
    return found


def _phi(name: str, l: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {"position": (l, width), "reduce.weight": (width, l * width), "mix.weight": (width, width)}
    return {f"{name}.{part}": shape for part, shape in shapes.items()}
