"""Any image file as an array, for every task."""
