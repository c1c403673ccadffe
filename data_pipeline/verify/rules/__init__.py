"""Rules of the strict mode for one notation each; every function shows an example of what it does."""
