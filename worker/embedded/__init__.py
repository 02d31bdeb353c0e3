"""A real Kafka and a real Redis or Valkey on loopback, for the demo and the tests."""
