//! Directories refer to each other by offset; a hostile file can make them go round in circles.

use std::collections::BTreeSet;

/// The directories that have been met, by offset. A directory has one place in a file: meeting it again is a mistake
/// or an attack, and following it could go on for ever.
#[derive(Debug, Clone, Default)]
pub(crate) struct Visited(BTreeSet<u64>);

impl Visited {
    /// Notes a directory; says what is wrong if it was met before, or if there are more than `limit`.
    pub(crate) fn visit(&mut self, offset: u64, limit: usize) -> Result<(), Refusal> {
        if !self.0.insert(offset) {
            return Err(Refusal::Cycle);
        }
        if self.0.len() > limit {
            return Err(Refusal::TooMany);
        }
        Ok(())
    }
}

/// Why a directory is not to be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It was met before.
    Cycle,
    /// There are too many.
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_visit_and_a_long_way_are_refused() {
        let mut visited = Visited::default();
        assert_eq!(visited.visit(8, 2), Ok(()));
        assert_eq!(visited.visit(100, 2), Ok(()));
        assert_eq!(visited.visit(8, 2), Err(Refusal::Cycle));
        assert_eq!(visited.visit(200, 2), Err(Refusal::TooMany));
    }
}
