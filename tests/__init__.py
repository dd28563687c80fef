"""The tests. A regular package: IPython 7 has a `tests` on its path, which would hide a namespace package."""
