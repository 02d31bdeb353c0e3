"""The known-bad references: banks, the Redis store, the mirror, and the index."""
