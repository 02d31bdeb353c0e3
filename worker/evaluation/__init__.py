"""How well copies are told from other pictures, measured on somebody's own images."""
