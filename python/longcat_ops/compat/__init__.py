"""Other libraries' interfaces over these ops, one folder each. Nothing else of the package imports them."""
