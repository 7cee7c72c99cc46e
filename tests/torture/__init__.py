"""`make torture`: what nobody should do to the package, done by seeded chance. See __main__.py."""
