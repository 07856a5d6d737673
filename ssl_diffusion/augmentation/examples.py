"""What records are read by: anything that gives examples by their number."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Examples(Protocol):
    """A `records.Source`, or a list of the same examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
