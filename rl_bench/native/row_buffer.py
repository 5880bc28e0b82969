"""Allocate memory once for a maximum number of rows, and use the first of them at each call."""

from __future__ import annotations

import torch


class RowBuffer:
    """Hold a tensor [capacity, …] and the views on its first rows, each made once.

    Making a view takes tens of microseconds between two products, as the code that makes it has
    left the caches by then.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self._views: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self.rows.shape[0]

    def first(self, count: int) -> torch.Tensor:
        """Return a view [count, …] on the first `count` rows."""
        if count not in self._views:
            assert 0 < count <= len(self)
            self._views[count] = self.rows[:count]
        return self._views[count]
