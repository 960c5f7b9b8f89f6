"""What goes between clients and the daemon: operations, launches and answers."""
