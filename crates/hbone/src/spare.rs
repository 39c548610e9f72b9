//! What a worker keeps for the next use (buffers, pipes): as much as is needed again and again, and after a flood no more.

/// Things that are kept.
#[derive(Debug)]
pub(crate) struct Spare<T> {
    kept: Vec<T>,
    most: usize,
    /// So many were never needed since the last look.
    unneeded: usize,
}

impl<T> Spare<T> {
    /// Nothing yet; no more than this is kept.
    pub(crate) const fn new(most: usize) -> Self {
        Self { kept: Vec::new(), most, unneeded: 0 }
    }

    /// One of them, if there is one.
    pub(crate) fn take(&mut self) -> Option<T> {
        let one = self.kept.pop();
        self.unneeded = self.unneeded.min(self.kept.len());
        one
    }

    /// One for the next use.
    pub(crate) fn give(&mut self, one: T) {
        if self.kept.len() < self.most {
            self.kept.push(one);
        }
    }

    /// Is nothing kept?
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Lets go of what was never needed since the last time.
    pub(crate) fn release(&mut self) {
        self.kept.drain(..self.unneeded.min(self.kept.len()));
        self.unneeded = self.kept.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_again_and_again_stays() {
        let mut spare = Spare::new(4);
        let use_up = |spare: &mut Spare<u8>, most: u8| {
            let taken: Vec<_> = (0..most).map(|_| spare.take().unwrap_or_default()).collect();
            taken.into_iter().for_each(|one| spare.give(one));
            spare.kept.len()
        };
        assert_eq!(use_up(&mut spare, 9), 4, "no more than that");
        spare.release();
        for _ in 0..3 {
            use_up(&mut spare, 2);
            spare.release();
            assert_eq!(spare.kept.len(), 2);
        }
        use_up(&mut spare, 1);
        spare.release();
        assert_eq!(spare.kept.len(), 1);
        spare.release();
        assert!(spare.is_empty(), "nothing was needed");
        assert_eq!(spare.take(), None);
        spare.release();
    }
}
