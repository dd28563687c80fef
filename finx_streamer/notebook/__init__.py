"""Everything for Jupyter: output in the right cell, reruns, snapshots, and the live view.

Nothing here is imported before a kernel runs, or before it is asked for.
"""
