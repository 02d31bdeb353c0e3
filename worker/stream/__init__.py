"""Kafka, and the only importer of its client: consumer, ledger, publisher, admin."""
