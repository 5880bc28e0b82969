"""Memory that is made once, for up to so many rows, and of which the first ones are used."""

from __future__ import annotations

import torch


class Room:
    """Rows, and views on the first of them, each made once.

    Between products a view takes tens of microseconds, as what makes it is in no cache then.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self._firsts: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self.rows.shape[0]

    def first(self, count: int) -> torch.Tensor:
        if count not in self._firsts:
            assert 0 < count <= len(self)
            self._firsts[count] = self.rows[:count]
        return self._firsts[count]
