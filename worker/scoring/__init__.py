"""From similarity to decision: scores, calibration, policy."""
