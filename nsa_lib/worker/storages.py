"""Follow live storages: what operators return, and what FSDP2 empties and fills again, until it dies."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_lib.worker.allocator import ROUNDING


class StorageTracker(TorchDispatchMode):
    """Follow the storages on one device that operators return, until they die.

    A storage made before the mode was entered is followed from `track` on, or from when an operator first returns it.

    Subclasses decide what to do when a storage appears (`born`) or disappears (`died`).
    """

    supports_higher_order_operators = True  # FlexAttention is one

    def __init__(self, device: str):
        super().__init__()
        self._device = device
        self._live: dict[int, _LiveStorage] = {}

    def track(self, *objects: object) -> None:
        """Follow what existed before: tensors, modules, optimizers, and lists, tuples and mappings of those."""
        for tensor in tensors_in(objects):
            self._add(tensor)

    def born(self, nbytes: int) -> object:
        """Return what is kept for a new storage of `nbytes`, a multiple of ROUNDING."""
        raise NotImplementedError

    def died(self, kept: object) -> None:
        """Note that a storage has disappeared; `kept` is what `born` returned for it."""
        raise NotImplementedError

    def __enter__(self) -> StorageTracker:
        # FSDP2 empties and fills the storages of gathered parameters outside of any operator.
        resize, tracker = torch.UntypedStorage.resize_, self

        def resized(storage: torch.UntypedStorage, nbytes: int) -> torch.UntypedStorage:
            resize(storage, nbytes)
            tracker._resized(storage)
            return storage

        self._resizing = patch.object(torch.UntypedStorage, "resize_", resized)
        self._resizing.start()
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._resizing.stop()

    def kept_for(self, tensor: torch.Tensor) -> object | None:
        """Return what `born` returned for a tensor's storage, or None if it is not followed."""
        live = self._live.get(id(tensor.untyped_storage()))
        return None if live is None else live.kept

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a tensor made of tensors, such as a sharded one: theirs are the storages
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._add(result)
        elif isinstance(result, (tuple, list)):
            for tensor in tensors_in(result):
                self._add(tensor)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided:
            return
        self._follow(tensor.untyped_storage())

    def _follow(self, storage: torch.UntypedStorage) -> None:
        # A live storage keeps its Python object, so the object's id names it until the weak reference fires.
        # The device is the storage's own: a fake tensor claims the CPU, but its storage is on "meta".
        if id(storage) in self._live or storage.device.type != self._device:
            return
        nbytes = -(-storage.nbytes() // ROUNDING) * ROUNDING
        if nbytes == 0:
            return
        reference = _LiveStorage(storage, self._remove)
        reference.key, reference.kept = id(storage), self.born(nbytes)
        self._live[reference.key] = reference

    def _resized(self, storage: torch.UntypedStorage) -> None:
        """Take a followed storage for a new one, of its new size."""
        if id(storage) in self._live:
            self._remove(self._live[id(storage)])
        self._follow(storage)

    def _remove(self, reference: _LiveStorage) -> None:
        del self._live[reference.key]
        self.died(reference.kept)


class _LiveStorage(weakref.ref):
    """A weak reference to a storage, with what `died` is told about it."""

    __slots__ = ("kept", "key")


def tensors_in(objects: Iterable[object]) -> Iterator[torch.Tensor]:
    """Yield the tensors, with their gradients, in tensors, modules, optimizers, lists, tuples and mappings."""
    for item in objects:
        if hasattr(item, "__tensor_flatten__"):
            yield from tensors_in(getattr(item, name) for name in item.__tensor_flatten__()[0])
            yield from tensors_in([item.grad] if item.is_leaf and item.grad is not None else [])
        elif isinstance(item, torch.Tensor):
            yield item
            if item.is_leaf and item.grad is not None:
                yield item.grad
        elif isinstance(item, torch.nn.Module):
            yield from tensors_in([*item.parameters(), *item.buffers()])
        elif isinstance(item, torch.optim.Optimizer):
            yield from tensors_in(item.state.values())
        elif isinstance(item, Mapping):
            yield from tensors_in(item.values())
        elif isinstance(item, (list, tuple)):
            yield from tensors_in(item)
