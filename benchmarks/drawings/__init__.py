"""What each figure of docs/findings shows: a file for one figure or for several of a kind."""
