//! Compute that the tensor libraries lack.
