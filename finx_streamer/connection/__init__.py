"""One WebSocket connection: its handshake, its event loop and its failures. Only this package imports `websocket`."""
