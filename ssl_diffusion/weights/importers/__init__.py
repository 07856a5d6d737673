"""Published models -> model folders to be, a module per layout."""
