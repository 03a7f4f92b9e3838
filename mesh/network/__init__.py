"""Messages between processes: hops, answers, questions, and the transports they travel by."""
