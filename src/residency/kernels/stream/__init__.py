"""Reading memory at its speed, for the probe."""
