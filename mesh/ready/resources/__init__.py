"""Resources to declare at a workflow: an HTTP client, a database engine, a cache."""
