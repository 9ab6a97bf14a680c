"""From results to a page: numbers into words and tables, then figures, then HTML. Trains nothing."""
