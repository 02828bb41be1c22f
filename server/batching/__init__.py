"""The queue, the scheduler and the device's executor."""
