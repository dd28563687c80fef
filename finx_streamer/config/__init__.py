"""The arguments of listeners and function clients, and their checks."""
