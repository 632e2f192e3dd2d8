"""Replaces the first blocks of a decoder by n-gram tables: the stream they compute is looked up by the last few tokens."""
