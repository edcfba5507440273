"""Any image file -> array, for every wing."""
