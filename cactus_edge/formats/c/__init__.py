"""A network as C99 sources: write them (`write`), compile and run them on this machine (`host`)."""
