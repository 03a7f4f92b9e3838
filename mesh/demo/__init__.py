"""The walkthrough that `bitactor demo` runs: sign-ups by HTTP, hop by hop over several processes, and what can go
wrong."""
