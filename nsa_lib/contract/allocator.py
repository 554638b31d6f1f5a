"""Settings of PyTorch's CUDA allocator: those whose cost is compared, and the part of one that is simulated."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_lib.subject.config import ConfigError

MIB = 2**20

LARGE_SEGMENT = 20 * MIB

UNBOUNDED = 2**62

ALLOCATOR_SETTINGS = {
    "default": "",
    "expandable": "expandable_segments:True",
    "max_split": "max_split_size_mb:256",
    "both": "expandable_segments:True,max_split_size_mb:256",
}
"""Allocator settings whose cost is compared; `both` is the checklist's line."""


def options_of(alloc_conf: str) -> list[str]:
    """Return the options of a setting, `name:value` each, without spaces."""
    return list(filter(None, "".join(alloc_conf.split()).split(",")))


@dataclass(frozen=True)
class AllocatorSettings:
    """The part of an allocator setting that the simulation follows."""

    expandable_segments: bool = False
    max_split_bytes: int = UNBOUNDED
    """Free blocks from this size on are kept whole."""

    @classmethod
    def parse(cls, alloc_conf: str) -> AllocatorSettings:
        """Read a setting such as `expandable_segments:True,max_split_size_mb:256`, as in PYTORCH_CUDA_ALLOC_CONF.

        Raises ConfigError, in one line that names the option, for what the simulation does not follow.
        """
        expandable, max_split_bytes = False, UNBOUNDED
        for option in options_of(alloc_conf):
            name, _, value = option.partition(":")
            if name == "expandable_segments" and value in ("True", "False"):
                expandable = value == "True"
            elif name == "max_split_size_mb" and value.isdecimal() and int(value) * MIB > LARGE_SEGMENT:
                max_split_bytes = int(value) * MIB
            else:
                accepted = "expandable_segments:True or False, max_split_size_mb:<integer above 20>"
                raise ConfigError(f"alloc_conf option {option!r} cannot be simulated: accepts {accepted}")
        return cls(expandable, max_split_bytes)
