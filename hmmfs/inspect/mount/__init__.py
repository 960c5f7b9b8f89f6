"""What a mount says of itself, read and put into words: what the other readers stand on."""
