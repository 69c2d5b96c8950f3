"""Does it stay forgotten? Relearning, membership inference, a linear probe, and other masks than the trained one."""
