"""Conversions of a trained transformer: fewer key heads, recurrent state, consolidated documents, n-gram memory."""
