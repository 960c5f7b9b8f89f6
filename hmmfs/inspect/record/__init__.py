"""`hmmfs record` and `export`: what happened, in a file."""
