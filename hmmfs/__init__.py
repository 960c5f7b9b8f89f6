"""hmmfs: a heterogeneous-memory machine that you can mount."""

__version__ = "0.1.0"
