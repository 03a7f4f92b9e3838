"""The walkthrough that `bitactor demo` runs: sign-ups by HTTP, hop by hop over several processes, with everything that can go wrong."""
