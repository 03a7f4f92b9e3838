"""A node and its transactions: accepting, supervising, admitting and recovering them, and delivering their emitted
signals."""
