"""What the worker tells of itself: metrics, health, logs."""
