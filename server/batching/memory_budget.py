"""How much of requests this process holds: what has come of them, and is not answered yet."""

from server.errors import Overloaded, TooLarge

# What a connection may hold without being counted: to count it would cost every request more
# than these bytes are worth, and connections are few enough.
FREE_BYTES = 1 << 16
# What clients have not read of their answers may be as much as this, however small bodies are.
ANSWERS = 1 << 29
# Parts of a body that are not worth an object of their own.
_SMALL_PART = 4096


class MemoryBudget:
    """Counts bytes of bodies and messages, on all connections together. All on the event loop.

    Each of them has a limit of its own, but together they could be as much as all memory. What
    goes beyond is refused, not made to wait: bodies that wait for each other would never end.

    Args:
      most: bytes at once.

    Attributes:
      size: bytes now.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = 0

    def acquire(self, size: int) -> None:
        """Hold some more.

        Raises:
          Overloaded: that would be too much; none of it is counted.
        """
        if self.size + size > self._most:
            raise Overloaded(
                f"bodies: expected at most {self._most} bytes of all requests under way, got more"
            )
        self.size += size

    def take_answer(self, size: int) -> None:
        """Hold an answer until its client has read it.

        Raises:
          Overloaded: that would be too much; none of it is counted.
        """
        most = max(self._most, ANSWERS)
        if self.size and self.size + size > most:
            raise Overloaded(
                f"answers: expected at most {most} bytes that wait to be read, got more"
            )
        self.size += size

    def release(self, size: int) -> None:
        """Hold so much less."""
        self.size -= size


class Unread:
    """The answers of one stream that its client has not read yet.

    Args:
      held: counts them, but for the first `FREE_BYTES` bytes.

    Attributes:
      size: bytes now.
    """

    def __init__(self, held: MemoryBudget) -> None:
        self._held = held
        self._counted = 0
        self.size = 0

    def add(self, size: int) -> None:
        """Count an answer.

        Raises:
          Overloaded: all streams together have too many; it is not counted.
        """
        more = self.size + size - FREE_BYTES - self._counted
        if more > 0:
            self._held.take_answer(more)
            self._counted += more
        self.size += size

    def remove(self, size: int) -> None:
        """Count an answer no more."""
        self.size -= size
        less = self._counted - max(0, self.size - FREE_BYTES)
        if less > 0:
            self._counted -= less
            self._held.release(less)


class BodyBuffer:
    """The body of one request of a connection after the other, while it comes.

    Args:
      held: counts it.
    """

    def __init__(self, held: MemoryBudget) -> None:
        self._held = held
        self._limit = self._size = self._counted = 0
        self.parts: list[bytes | bytearray] = []

    def begin(self, limit: int) -> None:
        """Begin a body of so many bytes at most."""
        self._limit, self._size = limit, 0
        self.parts = []

    def add(self, part: bytes) -> None:
        """Take a part.

        Raises:
          TooLarge: it is more than this body may have.
          Overloaded: it is more than all of them may have together.
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
        """Give the body that has come; it stays counted."""
        parts, self.parts = self.parts, []
        only = parts[0] if len(parts) == 1 else None
        return only if isinstance(only, bytes) else b"".join(parts)

    def count(self, size: int) -> None:
        """Count so much of it.

        Raises:
          Overloaded: that would be too much.
        """
        self._held.acquire(size - self._counted)
        self._counted = size

    def detach(self) -> int:
        """Give how much of it is counted; whoever asks has to give that back."""
        counted, self._counted = self._counted, 0
        return counted

    def drop(self) -> None:
        """Let go of it."""
        self.parts = []
        self._held.release(self.detach())
