"""Devices: the operations that they understand and how these are carried out. Nothing is imported
here: a device's own process needs little of it, and none of the daemon."""
