"""One device becomes much slower: the real dispatcher in virtual time, beside other policies."""
