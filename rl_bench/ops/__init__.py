"""Pure functions of tensors: keyword-only arguments, shapes asserted first, no I/O, no state."""
