"""Delivery to user code: queues, callbacks, iteration, recent ticks and statistics."""
