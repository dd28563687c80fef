"""The command line: `finx-streamer listen`, `history`, `snap`, `serve`, `demo`. Needs the extra `cli`."""
