"""Simulate how much memory PyTorch's CUDA caching allocator reserves for a stream of allocations.

Written from the allocator's published policy, for one device and one stream: sizes rounded to 512 B, pools of small
and large blocks, best fit, splitting and merging, expandable segments, `max_split_size_mb`, and the release of
everything cached when the device is full. Not covered: several streams, CUDA graphs, garbage collection, power-of-two
rounding, the earlier release of single oversized blocks under `max_split_size_mb`, and memory outside the caching
allocator (context, libraries' workspaces). Addresses and sizes are in bytes, figures in MiB.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from nsa_lib.contract.allocator import LARGE_SEGMENT, MIB, UNBOUNDED, AllocatorSettings

ROUNDING = 512

SMALL_REQUEST = MIB
"""Largest request that the pool of small blocks serves."""

SMALL_SEGMENT = 2 * MIB

OWN_SEGMENT = 10 * MIB
"""Requests from this size on get a segment of their own size, rounded up to `SMALL_SEGMENT`."""

ADDRESS_SPAN = LARGE_SEGMENT * 2**16
"""Addresses that one expandable segment can grow into; a multiple of both page sizes."""


class Block:
    """A range of addresses, linked to its neighbours in the same segment."""

    __slots__ = ("address", "allocated", "mapped", "next", "pool", "previous", "size")

    def __init__(self, address: int, size: int, pool: Pool, *, mapped: bool):
        self.address, self.size, self.pool, self.mapped = address, size, pool, mapped
        self.allocated = False
        self.previous: Block | None = None
        self.next: Block | None = None

    def cut(self, size: int) -> Block:
        """Keep the first `size` bytes and return the rest as a block of its own."""
        rest = Block(self.address + size, self.size - size, self.pool, mapped=self.mapped)
        rest.previous, rest.next = self, self.next
        if self.next:
            self.next.previous = rest
        self.next, self.size = rest, size
        return rest

    def absorb(self, neighbour: Block | None) -> None:
        """Merge with a neighbour that is free and equally mapped, if it is."""
        if neighbour is None or neighbour.allocated or neighbour.mapped != self.mapped:
            return
        self.pool.remove(neighbour)
        self.size += neighbour.size
        if neighbour is self.previous:
            self.address, self.previous = neighbour.address, neighbour.previous
            if self.previous:
                self.previous.next = self
        else:
            self.next = neighbour.next
            if self.next:
                self.next.previous = self


class Pool:
    """The free blocks of one size class, by size, and the unmapped ranges of its expandable segments, by address."""

    def __init__(self, page: int):
        self.page = page
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []

    def add(self, block: Block) -> None:
        if block.mapped:
            insort(self.free, (block.size, block.address, block))
        else:
            insort(self.unmapped, (block.address, block))

    def remove(self, block: Block) -> None:
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]


class AllocatorSimulation:
    """Allocate and free on a simulated device, and say what the caching allocator would have reserved."""

    def __init__(self, alloc_conf: str = "", capacity_mib: float | None = None):
        """Start empty, with the setting `alloc_conf` and, if given, a device of `capacity_mib`.

        Raises ConfigError for a setting that cannot be simulated.
        """
        self.settings = AllocatorSettings.parse(alloc_conf)
        self._capacity = UNBOUNDED if capacity_mib is None else int(capacity_mib * MIB)
        self._small = Pool(SMALL_SEGMENT)
        self._large = Pool(LARGE_SEGMENT)
        self._next_address = ADDRESS_SPAN
        self._reserved = self._reserved_peak = self._active = 0
        self.retries = 0
        """Times that a full device forced the release of everything cached."""
        self.device_allocs = 0
        """Times that the allocator went to the device for memory."""

    @property
    def reserved_mib(self) -> float:
        return self._reserved / MIB

    @property
    def reserved_peak_mib(self) -> float:
        """Most reserved since the last `reset_peak`."""
        return self._reserved_peak / MIB

    @property
    def active_mib(self) -> float:
        """Size of the blocks in use."""
        return self._active / MIB

    def reset_peak(self) -> None:
        """Start `reserved_peak_mib` anew from what is reserved now."""
        self._reserved_peak = self._reserved

    def allocate(self, nbytes: int) -> Block | None:
        """Return a block that holds `nbytes`, or None for no bytes.

        Raises MemoryError if the device is full even after a retry.
        """
        if nbytes <= 0:
            return None
        size = -(-nbytes // ROUNDING) * ROUNDING
        pool = self._small if size <= SMALL_REQUEST else self._large
        block = self._take_cached(pool, size) or self._take_new(pool, size)
        if block is None:
            self.retries += 1
            self.empty_cache()
            block = self._take_new(pool, size)
        if block is None:
            raise MemoryError(
                f"simulated device is full: {size / MIB:.1f} MiB on top of {self.reserved_mib:.1f} MiB reserved"
            )
        if self._splits(block, size):
            pool.add(block.cut(size))
        block.allocated = True
        self._active += block.size
        return block

    def free(self, block: Block | None) -> None:
        """Give a block back. Raises ValueError if it is free already."""
        if block is None:
            return
        if not block.allocated:
            raise ValueError(f"block at {block.address:#x} is free already")
        block.allocated = False
        self._active -= block.size
        block.absorb(block.previous)
        block.absorb(block.next)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give what is free back to the device, as torch.cuda.empty_cache does and a full device demands."""
        for pool in (self._small, self._large):
            for _, _, block in list(pool.free):
                if self.settings.expandable_segments:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    pool.remove(block)
                    self._reserved -= block.size

    def _splits(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool is self._small or self.settings.expandable_segments:
            return rest >= ROUNDING
        return rest > SMALL_REQUEST and size < self.settings.max_split_bytes

    def _take_cached(self, pool: Pool, size: int) -> Block | None:
        free, limit = pool.free, self.settings.max_split_bytes
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if self.settings.expandable_segments:
            # A block that can still grow counts as large as it can grow, so that others are used up before it.
            while index + 1 < len(free) and _room(free[index + 1][2]) < _room(free[index][2]):
                index += 1
        block = free[index][2]
        # Also under expandable segments, where this only wastes: blocks there are split whatever their size.
        if block.size >= (limit if size < limit else size + LARGE_SEGMENT):
            return None
        del free[index]
        return block

    def _take_new(self, pool: Pool, size: int) -> Block | None:
        """Return a block of at least `size` of fresh memory, in no pool; None if the device is full."""
        segment = _segment_size(size)
        if self._reserved + segment > self._capacity:
            return None
        if not self.settings.expandable_segments:
            self._reserve(segment)
            self._next_address += segment
            return Block(self._next_address - segment, segment, pool, mapped=True)
        block = self._range_to_grow(pool, size)
        if not block.mapped:
            block = self._map(block, size)
        while block.size < size:
            block = self._map(block.next, size - block.size)
        pool.remove(block)
        return block

    def _range_to_grow(self, pool: Pool, size: int) -> Block:
        """Return the lowest free or unmapped block from which `size` bytes can be mapped without a gap."""
        for _, unmapped in pool.unmapped:
            first = unmapped.previous if unmapped.previous and not unmapped.previous.allocated else unmapped
            room, block = 0, first
            while block and not block.allocated and room < size:
                room, block = room + block.size, block.next
            if room >= size:
                return first
        segment = Block(self._next_address, ADDRESS_SPAN, pool, mapped=False)
        self._next_address += ADDRESS_SPAN
        pool.add(segment)
        return segment

    def _map(self, block: Block, size: int) -> Block:
        """Back the first pages of an unmapped block with memory and return the free block that they end up in."""
        pool = block.pool
        size = min(block.size, -(-size // pool.page) * pool.page)
        pool.remove(block)
        if size < block.size:
            pool.add(block.cut(size))
        block.mapped = True
        self._reserve(size)
        block.absorb(block.previous)
        block.absorb(block.next)
        pool.add(block)
        return block

    def _reserve(self, size: int) -> None:
        self._reserved += size
        self._reserved_peak = max(self._reserved_peak, self._reserved)
        self.device_allocs += 1

    def _unmap(self, block: Block) -> None:
        """Give the whole pages inside a free block back to the device."""
        pool = block.pool
        first = -(-block.address // pool.page) * pool.page
        end = (block.address + block.size) // pool.page * pool.page
        if first >= end:
            return
        pool.remove(block)
        if block.address + block.size > end:
            pool.add(block.cut(end - block.address))
        if first > block.address:
            rest = block.cut(first - block.address)
            pool.add(block)
            block = rest
        block.mapped = False
        self._reserved -= block.size
        block.absorb(block.previous)
        block.absorb(block.next)
        pool.add(block)


def _room(block: Block) -> int:
    return block.size + (block.next.size if block.next and not block.next.mapped else 0)


def _segment_size(size: int) -> int:
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT:
        return LARGE_SEGMENT
    return -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
