"""The `hmmfs` command: one file for a group of its subcommands."""
