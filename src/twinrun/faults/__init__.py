"""Planted faults, one for each kind of real bug: they break a correct runner to judge the verifier."""
