"""The one training case that every notebook's cases are made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nsa_lib.contract.backends import ATTENTION_SIZES
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.own import brought
from nsa_lib.runs.parameters import Value
from nsa_lib.subject.config import OWN, ModelConfig, NSAConfig


def training_case(values: Mapping[str, Value]) -> CaseConfig:
    """Return the training that the parameters describe. Raises ConfigError for sizes that do not fit each other."""

    def pick(*names: str) -> dict[str, object]:
        return {name: values[name].value for name in names}

    nsa = NSAConfig(**pick(*ATTENTION_SIZES))
    model = ModelConfig(nsa=nsa, **pick("layers", "vocab"), **_on_trial(values))
    data = str(values["data"].value) if "data" in values else "synthetic"
    return CaseConfig(
        case_id="training",
        model=model,
        data=data if data == "synthetic" else str(Path(data).expanduser().resolve()),
        compile="compile" in values and values["compile"].value,
        **pick("seq_len", "batch", "steps", "dtype", "grad_checkpointing", "lr", "seed", "device", "alloc_conf"),
        **pick("device_budget_gib", "fault"),
    )


def _on_trial(values: Mapping[str, Value]) -> dict[str, object]:
    """Return the attention, backend and user's part of a model, by the names of ModelConfig."""
    own = brought(values)
    named = {name: values[name].value for name in ("attention", "backend") if name in values and values[name].value}
    if own is None:
        return named
    return {**named, "own": own} if own.role == "model" else {**named, own.role: OWN, "own": own}
