"""Engines run one model each: ``registry`` lists them, ``base`` says what all of them promise."""
