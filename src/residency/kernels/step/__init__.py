"""The driver that runs a recorded step."""
