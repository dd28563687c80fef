"""One WebSocket connection, and the event loop and handshake pool that connections share."""
