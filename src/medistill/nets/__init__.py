"""Networks as functions of their parameters, and the one recipe that trains them."""
