"""Canaries: edited copies of the operator's own pictures, published to see that they are found."""
