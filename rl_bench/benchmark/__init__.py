"""A whole benchmark: several arms, seeds and games, trained in turns, evaluated and compared."""
