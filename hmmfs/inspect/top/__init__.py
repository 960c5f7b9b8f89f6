"""`hmmfs top`."""
