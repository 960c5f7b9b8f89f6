"""The Python API. Everything goes through files of the mount; no part of the daemon is loaded."""
