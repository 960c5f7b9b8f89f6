"""`hmmfs smi`."""
