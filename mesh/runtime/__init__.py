"""A node and its transactions: accepted, supervised, admitted, recovered, and what they emit."""
