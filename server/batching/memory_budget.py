"""The memory budget: bytes of request bodies and unread answers, on all connections together."""

from collections.abc import Callable

from server.errors import Overloaded, TooLarge

# Bytes of a connection that are not counted: counting them would cost every request more than
# they are worth, and connections are few enough.
FREE_BYTES = 1 << 16
# Lower limit of the budget for answers that clients have not read, however small that of bodies.
MIN_ANSWER_BYTES = 1 << 29
# Parts of a body below this size are joined.
_SMALL_PART = 4096


class MemoryBudget:
    """Counts bytes of bodies and messages, on all connections together. All on the event loop.

    Each body has its own limit, but together they could exceed all memory. Requests beyond the
    budget are refused, not delayed: bodies that wait for each other would never end.

    Args:
      limit: bytes at once.

    Attributes:
      size: bytes counted now.
      working: bytes that threads take beside them to prepare raw inputs; `WorkingMemory` alone
        changes it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.size = 0
        self.working = 0

    def fits_working(self, size: int) -> bool:
        """Whether a thread can take `size` bytes more; the first one always can."""
        return not self.working or self.size + self.working + size <= self._limit

    def acquire(self, size: int) -> None:
        """Count `size` more bytes.

        Raises:
          Overloaded: they exceed the budget; none is counted.
        """
        if self.size + self.working + size > self._limit:
            raise Overloaded(
                f"bodies: expected at most {self._limit} bytes of all requests under way, got more"
            )
        self.size += size

    def acquire_answer(self, size: int) -> None:
        """Count an answer of `size` bytes that its client has not read yet.

        Raises:
          Overloaded: it exceeds the budget, and is not the only one; it is not counted.
        """
        limit = max(self._limit, MIN_ANSWER_BYTES)
        if self.size and self.size + size > limit:
            raise Overloaded(
                f"answers: expected at most {limit} bytes that wait to be read, got more"
            )
        self.size += size

    def release(self, size: int) -> None:
        """Count `size` bytes less."""
        self.size -= size


class Counted:
    """The bytes that one connection or stream occupies.

    Args:
      acquire: counts bytes in a budget, those beyond the first `FREE_BYTES`; raises Overloaded.
      budget: the budget.

    Attributes:
      size: bytes now.
    """

    __slots__ = ("_acquire", "_budget", "_counted", "size")

    def __init__(self, acquire: Callable[[int], None], budget: MemoryBudget) -> None:
        self._acquire = acquire
        self._budget = budget
        self._counted = 0
        self.size = 0

    def add(self, size: int) -> None:
        """Count bytes.

        Raises:
          Overloaded: all together exceed the budget; these are not counted.
        """
        more = self.size + size - FREE_BYTES - self._counted
        if more > 0:
            self._acquire(more)
            self._counted += more
        self.size += size

    def remove(self, size: int) -> None:
        """Stop counting bytes."""
        self.size -= size
        less = self._counted - max(0, self.size - FREE_BYTES)
        if less > 0:
            self._counted -= less
            self._budget.release(less)


class Unread(Counted):
    """The answers of one stream or connection that its client has not read yet.

    Args:
      budget: counts them, except for the first `FREE_BYTES` bytes.
    """

    __slots__ = ()

    def __init__(self, budget: MemoryBudget) -> None:
        super().__init__(budget.acquire_answer, budget)


class Received(Counted):
    """The requests of one connection that are not answered yet.

    Args:
      budget: counts them, except for the first `FREE_BYTES` bytes.
    """

    __slots__ = ()

    def __init__(self, budget: MemoryBudget) -> None:
        super().__init__(budget.acquire, budget)


class BodyBuffer:
    """Buffers the body of a connection's current request while it is received.

    Args:
      budget: counts it.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._limit = self._size = self._counted = 0
        self.parts: list[bytes | bytearray] = []

    def begin(self, limit: int) -> None:
        """Start a body of `limit` bytes at most."""
        self._limit, self._size = limit, 0
        self.parts = []

    def add(self, part: bytes) -> None:
        """Append a part.

        Raises:
          TooLarge: the body exceeds its limit.
          Overloaded: all bodies together exceed the budget.
        """
        self._size += len(part)
        if self._size > self._limit:
            raise TooLarge(f"body: expected at most {self._limit} bytes, got more")
        if self._size > FREE_BYTES:
            self.count(self._size)
        if len(part) < _SMALL_PART and self.parts:
            # In tiny chunks a body of bytes objects would take 60 times its size.
            if type(self.parts[-1]) is not bytearray:
                self.parts.append(bytearray())
            self.parts[-1] += part
        else:
            self.parts.append(part)

    def take(self) -> bytes:
        """Return the body, and empty the buffer; its bytes stay counted."""
        parts, self.parts = self.parts, []
        only = parts[0] if len(parts) == 1 else None
        return only if isinstance(only, bytes) else b"".join(parts)

    def count(self, size: int) -> None:
        """Count `size` bytes of the body, in place of those counted before.

        Raises:
          Overloaded: all bodies together exceed the budget.
        """
        self._budget.acquire(size - self._counted)
        self._counted = size

    def detach(self) -> int:
        """Return the number of counted bytes, which the caller has to release."""
        counted, self._counted = self._counted, 0
        return counted

    def drop(self) -> None:
        """Discard the body and release its bytes."""
        self.parts = []
        self._budget.release(self.detach())
