"""The compilation of workflows to plans, validated and indexed graphs of steps; and the port of a container."""
