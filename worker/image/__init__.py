"""Bytes in, canonical 8-bit RGB out: fetch, decode, preprocess."""
