"""Files, units and names: what every part uses, and what uses nothing of ours but errors."""
