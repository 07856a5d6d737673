"""One module per published family: how its files are recognised, read and written."""
