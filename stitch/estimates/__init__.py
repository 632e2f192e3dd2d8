"""How long commands will take and how much they will write, worked out before they run."""
