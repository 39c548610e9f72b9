//! What a template may use, so that a wrong one ends.

/// What one file may use.
pub(super) struct Limits;

impl Limits {
    /// Blocks, parentheses and templates in each other, counted together: what keeps the stack small.
    pub(super) const DEPTH: usize = 150;
    /// Nodes that are executed, which bounds the time.
    pub(super) const STEPS: usize = 2_000_000;
    /// Bytes of output, and of any value that a function makes.
    pub(super) const OUTPUT: usize = 8 << 20;
}
