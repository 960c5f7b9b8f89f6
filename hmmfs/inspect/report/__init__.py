"""`hmmfs report`: a recording as a page for a browser."""
