"""Holds pure functions of tensors: keyword-only, shapes asserted first, no I/O, no state."""
