"""A mount from outside: its options, how it is made, found and ended."""
