"""The judge of the steps that ran: it records them from inside and computes what they did a second time, in float64.

`Witness` is what a loop uses. `sample` says which layers and rows, `recording` records one real training step without
changing it, and `judge` holds the record against the reference (`attention.reference_rows`, `reference_gradients`) and
AdamW's rule. The judge calls no code that is on trial, and sees the run's own tensors at its own length, batch, layers,
heads, dtype and weights.
"""

from nsa_lib.worker.attestation.judge import StepFound, judge
from nsa_lib.worker.attestation.recording import holding, recording
from nsa_lib.worker.attestation.records import StepRecord
from nsa_lib.worker.attestation.sample import Sample, sample
from nsa_lib.worker.attestation.shown import show_always
from nsa_lib.worker.attestation.update import AdamW
from nsa_lib.worker.attestation.witness import Witness

__all__ = [
    "AdamW",
    "Sample",
    "StepFound",
    "StepRecord",
    "Witness",
    "holding",
    "judge",
    "recording",
    "sample",
    "show_always",
]
