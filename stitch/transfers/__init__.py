"""What people carry from one model to another: a sparse autoencoder, a linear probe, steering vectors, rewritten for B's site."""
