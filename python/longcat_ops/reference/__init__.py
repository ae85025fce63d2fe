"""The ops in plain torch, under the same names: the oracle of the tests and the path of what has no kernel yet."""
