"""Streams: sessions, gap recovery and resequencing."""
