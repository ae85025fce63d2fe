"""Calls of every op on shapes that force edges, and comparisons of results: for tests, benches and checks of a GPU."""
