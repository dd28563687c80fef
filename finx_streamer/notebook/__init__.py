"""Jupyter integration: output in the right cell, reruns, snapshots and the live view.

Only `finx_streamer.jupyter` imports from here, and only when needed.
"""
