"""Validated user input: symbols, endpoint, API key, redaction, proxy, reconnect policy."""
