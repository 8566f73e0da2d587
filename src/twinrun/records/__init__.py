"""Plain records that runners write and that verify, trace and report read. They hold tensors, never a model."""
