"""How functions, values, types, sources and options are written as plain data, and read again."""
