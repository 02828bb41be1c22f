"""What the records that callers write, such as an ExportSpec, have in common."""

from typing import Any, Self

from runtime.errors import nearest


class Declaration:
    """A dataclass that callers make: a misspelled field names the nearest one."""

    __slots__ = ()

    def __new__(cls, *_: object, **fields: object) -> Self:
        """Make one.

        Raises:
          TypeError: there is no such field; names the nearest, and all there are.
        """
        known: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
        for name in fields:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__}: no such field {name!r}{nearest(name, known)} (fields: "
                    f"{', '.join(known)})"
                )
        return object.__new__(cls)
