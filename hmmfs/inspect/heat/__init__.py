"""Where the pages of a region are, as a map."""
