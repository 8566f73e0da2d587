"""Planted faults, one for each kind of real bug: they break a correct runner on purpose, to judge the verifier."""
