"""A recurrent network with fast weights in place of the cache: its forms, how they are fitted, what they are worth."""
