"""copysieve: screens image uploads from Kafka against known-bad references, and says so on a topic."""

__version__ = "0.1.0"
