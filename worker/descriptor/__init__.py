"""From pixels to descriptors: the SSCD network, its published files, and what runs them."""
