"""Function calls over a pool of connections: tick history, snaps, reference data."""
