"""The `copysieve` command: wiring and words; the work is done in the rooms."""
