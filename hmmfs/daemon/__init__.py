"""The process behind a mount: puts the parts together, and ends them."""
