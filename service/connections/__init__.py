"""Limit what a client connection may send, hold and leave unread."""
