"""Readers of a mount's state. Only reads."""
