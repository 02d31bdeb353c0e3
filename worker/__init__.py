"""copysieve screens image uploads from Kafka against known-bad references."""

__version__ = "0.1.0"
