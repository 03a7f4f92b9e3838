"""Support of servers and clients: binding, keys, waking a thread, a throttle for the log."""
