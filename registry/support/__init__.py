"""What servers and clients stand on: where one binds, keys, waking a thread, a log that strangers cannot fill."""
