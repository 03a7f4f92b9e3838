"""The two sides of the protocol, without sockets and clocks: frames and time go in, frames come out."""
