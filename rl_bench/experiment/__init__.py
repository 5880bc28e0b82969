"""A run as a measurement: build, open the window, train, write the results whatever happens."""
