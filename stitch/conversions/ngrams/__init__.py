"""The first blocks of a decoder as an explicit memory: what they compute, looked up by the last few tokens."""
