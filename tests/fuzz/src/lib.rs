//! See the targets in `src/bin`; this library is empty.
