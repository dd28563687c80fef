"""Bytes to ticks, notices and errors, without I/O."""
