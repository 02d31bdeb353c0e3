"""The demonstration: real uploads through real replicas, and a report a person can look at."""
